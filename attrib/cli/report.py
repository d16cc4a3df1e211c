"""`attrib report`: which layers to edit and why, as a page, as Markdown and as JSON."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from typer import Option

from attrib.cli.analyse import analyse, command_options
from attrib.cli.caching import caching
from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.outputs import exit_code_for, log, refuse_unwritable, results_folder
from attrib.cli.report_commands import commands_of
from attrib.cli.select import SelectOptions
from attrib.cli.select_runs import make_evidence
from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import NAMED_SPLITS, PANEL, AnalysisOptions
from attrib.pipeline.registry import find_analysis
from attrib.pipeline.source import load_samples

if TYPE_CHECKING:
    import pandas as pd

    from attrib.data import EditSample
    from attrib.report.layer_study import LayerStudy
    from attrib.report.run_reader import RunRead
    from attrib.selection import LayerReport

NOISE = 0.1  # of the heatmaps: with little noise one draw is enough to find what is looked at
TRUTH = "scenes-vqa"  # the data whose questions' objects are known


class ReportOptions(SelectOptions):
    """Options of `attrib report`."""

    free = frozenset({"pictures", "pointing"})

    runs: Annotated[
        list[Path] | None,
        Option("--from", help="Folder of `attrib select` or of a run, finished or not; may be "
               "given several times, such as for heatmaps. Then nothing is computed.",
               show_default="none", rich_help_panel=PANEL),
    ] = None  # fmt: skip
    against: Annotated[
        Path | None,
        Option("--grid", help="The scores.csv of `attrib grid` (or Parquet: text, visual, seed, "
               "score), which tells what the choice costs.", rich_help_panel=PANEL),
    ] = None  # fmt: skip
    words: Annotated[int, Option(hidden=True, min=1, max=1), Field(ge=1, le=1)] = 1
    pictures: Annotated[
        int, Option(help="Images to show heatmaps of.", min=0, rich_help_panel=PANEL), Field(ge=0)
    ] = 4  # fmt: skip
    pointing: Annotated[
        int,
        Option(help="Questions on which heatmaps are held against the truth, which scenes-vqa "
               "alone has.", min=0, rich_help_panel=PANEL),
        Field(ge=0),
    ] = 64  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "report", ReportOptions, report)


def report(options: ReportOptions) -> int:
    """Layer-selection report: one page with the layers, the evidence and the confidence."""
    if options.split is None and options.data in NAMED_SPLITS:
        options = options.model_copy(update={"split": "validation"})
    grid = None if options.against is None else (str(options.against), _grid(options.against))
    out = _folder(options)
    refuse_unwritable(out)
    with caching():  # the model is read once for all analyses
        made = bool(options.runs) or _made(options, out)
    if not made:
        return ExitCode.DONE  # a dry run, or another process writes the report
    study = _study(options, options.runs or [out], out, grid)
    _tell(study, out)
    return exit_code_for(study.quarantined, options.max_failures)


def _folder(options: ReportOptions) -> Path:
    """Where the report goes: by default to the runs that are made for it, which `select` shares."""
    if options.runs and options.out is None:
        return Path("runs") / f"report-{options.runs[0].resolve().name}"
    return results_folder("select", _selecting(options))


def _selecting(options: ReportOptions) -> SelectOptions:
    return SelectOptions(**{name: getattr(options, name) for name in SelectOptions.model_fields})


def _made(options: ReportOptions, out: Path) -> bool:
    """Compute what is missing; whether it is now for this process to report on it."""
    if make_evidence(_selecting(options), out) is None:
        return False
    if options.pictures:
        shared = _shared(options, out, "heatmap", options.pictures)
        _also("heatmap", {**shared, "noise": NOISE, "pictures": 0})
    if options.pointing and options.data == TRUTH:
        _also("faithfulness", _shared(options, out, "faithfulness", options.pointing))
    return True


def _shared(options: ReportOptions, out: Path, name: str, number: int) -> dict[str, Any]:
    """The options of an analysis of the first rows, in a folder of its own."""
    limit = min(number, options.limit or number)
    shared = {field: getattr(options, field) for field in AnalysisOptions.model_fields}
    return {**shared, "max_failures": None, "limit": limit, "out": out / f"{name}-{limit}"}


def _also(name: str, values: dict[str, Any]) -> None:
    """Run an analysis that the report can do without."""
    try:
        with redirect_stdout(sys.stderr):
            cls = find_analysis(name)
            analyse(cls, command_options(cls)(**values))
    except (AttribError, SetupError) as error:
        log(f"report: left out: {error}")


def _study(
    options: ReportOptions,
    folders: Sequence[Path],
    out: Path,
    grid: "tuple[str, pd.DataFrame] | None",
) -> "LayerStudy":
    from dataclasses import replace

    from attrib.report.layer_study import layer_study
    from attrib.report.run_reader import read_runs

    runs = read_runs(folders)
    saved = _saved(folders)
    settings: dict[str, Any] = {"rule": options.rule, "number": options.number,
                                "seed": options.seed}  # fmt: skip
    if saved is not None and options.runs:
        settings |= _settings_of(saved, options)
    study = layer_study(runs, **settings, grid=grid, samples=_samples, pictures=options.pictures)
    chosen = study.report
    if saved is not None and saved.layers != chosen.layers and saved.rule == chosen.rule:
        log(f"report: the layers are {dict(chosen.layers)}; layers.json, of other results, says "
            f"{dict(saved.layers)}")  # fmt: skip
    made = replace(chosen, provenance={**chosen.provenance, "invocation": invocation()})
    return replace(
        study,
        report=made,
        commands=commands_of(study, out, options.runs or [out], judged=options.against is not None),
    )


def _saved(folders: Sequence[Path]) -> "LayerReport | None":
    """What `attrib select` chose from the first folder that has its file."""
    from attrib.selection import LayerReport

    files = [folder / "layers.json" for folder in folders]
    return next((LayerReport.load(file) for file in files if file.is_file()), None)


def _settings_of(saved: "LayerReport", options: ReportOptions) -> dict[str, Any]:
    """How the choice was made, where the command line does not say otherwise."""
    number = max(1, *(len(layers) for layers in saved.layers.values()))
    there = {"rule": saved.rule, "number": number, "seed": saved.provenance.get("seed", 0)}
    return {name: value for name, value in there.items() if name not in options.model_fields_set}


def _samples(run: "RunRead") -> "Mapping[str, EditSample]":
    """The samples of a run by name; none where its data is gone or has changed."""
    there = {n: v for n, v in run.options.items() if n in AnalysisOptions.model_fields}
    if "data" not in there:
        return {}  # no command made it: where its samples are is not written down
    digest = run.result.provenance.get("data", {}).get("sha256")
    try:
        data = load_samples(AnalysisOptions.model_validate(there))
    except (AttribError, ValueError, OSError) as error:
        log(f"report: the samples of {run.folder} cannot be read: {error}")
        return {}
    if digest and data.provenance.get("sha256", digest) != digest:
        log(f"report: the data of {run.folder} has changed since: its samples are not shown")
        return {}
    return {sample.id: sample for sample in data}


def _grid(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError as error:
        raise AttribError(f"--grid {path}: no such file") from error
    except ValueError as error:
        raise AttribError(f"--grid {path}: neither CSV nor Parquet: {error}") from error


def _tell(study: "LayerStudy", out: Path) -> None:
    from attrib.report.layers_page import write_layer_report
    from attrib.report.summary import headline, partial_of, sureness

    files = write_layer_report(study, out)
    told = [partial_of(study), headline(study), sureness(study), *(f"  {file}" for file in files)]
    print("\n".join(line for line in told if line))
