"""`attrib report`: which layers to edit and why, as a page, as Markdown and as JSON."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field
from typer import Option

from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.outputs import exit_code_for, refuse_unwritable, results_folder
from attrib.cli.report_commands import commands_of
from attrib.cli.select import SelectOptions, analysis_for, make_evidence, with_validation_split
from attrib.pipeline.options import PANEL, option
from attrib.pipeline.source import ModelLoader, load_samples


class ReportOptions(SelectOptions):
    """Options of `attrib report`."""

    free = frozenset({"pictures", "pointing"})

    runs: list[Path] | None = option(
        None,
        "Folder of `attrib select` or of a run, finished or not; repeatable, such as for "
        "heatmaps. Nothing is computed then.",
        panel=PANEL,
        shown="none",
        flags=("--from",),
    )
    against: Path | None = option(
        None,
        "The scores.csv of `attrib grid` (or Parquet: text, visual, seed, score), on which the "
        "regret of the selection is computed.",
        panel=PANEL,
        flags=("--grid",),
    )
    words: Annotated[int, Option(hidden=True, min=1, max=1), Field(ge=1, le=1)] = 1
    pictures: int = option(4, "Number of images with heatmaps.", panel=PANEL, ge=0)
    pointing: int = option(
        64,
        "Questions of the pointing game: heatmaps against the ground truth, which only scenes-"
        "vqa has.",
        panel=PANEL,
        ge=0,
    )


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "report", ReportOptions, report)


def report(options: ReportOptions) -> int:
    """Layer-selection report: one page with the layers, the evidence and the confidence."""
    from dataclasses import replace

    from attrib.pipeline.report import read_study
    from attrib.pipeline.select import read_grid
    from attrib.report.confidence import verdict
    from attrib.report.layer_report import write_layer_report
    from attrib.report.selection_summary import headline

    options = with_validation_split(options)
    grid = None if options.against is None else (str(options.against), read_grid(options.against))
    selecting = SelectOptions(**{n: getattr(options, n) for n in SelectOptions.model_fields})
    out = results_folder("select", selecting)  # `attrib select` has its runs there
    if options.runs and options.out is None:
        out = Path("runs") / f"report-{options.runs[0].resolve().name}"
    refuse_unwritable(out)
    if not options.runs and not _make(options, selecting, out):
        return ExitCode.DONE  # a dry run, or another process writes the report
    folders = options.runs or [out]
    typed = options.model_fields_set if options.runs else {"rule", "number", "seed"}
    settings = {n: getattr(options, n) for n in ("rule", "number", "seed") if n in typed}
    study = read_study(folders, grid=grid, pictures=options.pictures, **settings)
    selected = study.report
    selected = replace(selected, provenance={**selected.provenance, "invocation": invocation()})
    commands = commands_of(study, out, folders, with_grid=grid is not None)
    study = replace(study, report=selected, commands=commands)
    files = write_layer_report(study, out)
    lines = [study.partial, headline(selected), verdict(study), *(f"  {file}" for file in files)]
    print("\n".join(line for line in lines if line))
    return exit_code_for(study.quarantined, options.max_failures)


def _make(options: ReportOptions, selecting: SelectOptions, out: Path) -> bool:
    """Run what is missing; whether this process writes the report."""
    from attrib.pipeline.report import extras, run_extra
    from attrib.runs import Rank

    device = Rank.from_environment().device(options.device)
    load = ModelLoader()
    if make_evidence(selecting, out, load) is None:
        return False
    limit = options.limit or max(options.pictures, options.pointing)
    for extra in extras(options.data, limit, options.pictures, options.pointing):
        given = selecting.model_copy(update={"limit": extra.rows, "max_failures": None})
        make = partial(analysis_for, given)
        run_extra(load(given, device), load_samples(given), out, extra, make, invocation())
    return True
