"""`attrib select`: which layers to edit, from evidence that is there or is made first."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field, model_validator
from typer import Option

from attrib.cli.caching import caching
from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.outputs import exit_code_for, log, results_folder
from attrib.cli.select_runs import make_evidence
from attrib.errors import AttribError
from attrib.pipeline.options import NAMED_SPLITS, PANEL, AnalysisOptions
from attrib.pipeline.source import prefix_length

if TYPE_CHECKING:
    import pandas as pd

    from attrib.data import Quarantined
    from attrib.results import Result
    from attrib.selection import LayerReport

LAYERS = "layers.json"


class SelectOptions(AnalysisOptions):
    """Options of `attrib select`."""

    free = frozenset({"rule", "number", "words", "against"})

    split: Annotated[
        str | None,
        Option(help="validation for scenes, so that no layer is chosen on what an editor is tested "
               "on; vqa-train, vqa-eval, caption-train or caption-eval for a folder.",
               show_default="validation", rich_help_panel="Data"),
    ] = None  # fmt: skip
    runs: Annotated[
        list[Path] | None,
        Option("--from", help="Folder of a finished analysis, or a folder of such folders; may be "
               "given several times. Then nothing is computed.", show_default="none",
               rich_help_panel=PANEL),
    ] = None  # fmt: skip
    rule: Annotated[
        Literal[
            "consensus", "onset", "sensitivity", "patching",
            "onset-attn", "onset-mlp", "reach", "attention", "pointing",
        ],
        Option(help="Who chooses; onset: VisEdit, sensitivity: DualEdit; the last five have no "
               "vote in the consensus.",
               rich_help_panel=PANEL),
    ] = "consensus"  # fmt: skip
    number: Annotated[
        int, Option(help="Layers per modality, best first.", min=1, rich_help_panel=PANEL),
        Field(ge=1),
    ] = 1  # fmt: skip
    words: Annotated[
        int,
        Option(help="Analyse this many words of the answer one after the other, from "
               "--answer-prefix on; the earliest chosen layer is taken.", min=1,
               rich_help_panel=PANEL),
        Field(ge=1),
    ] = 1  # fmt: skip
    against: Annotated[
        Path | None,
        Option(help="A grid of scores (CSV or Parquet: text, visual, seed, score) that tells what "
               "the choice costs.", rich_help_panel=PANEL),
    ] = None  # fmt: skip

    @model_validator(mode="after")
    def _many(self) -> "SelectOptions":
        if self.prompt is not None:
            raise ValueError("select needs many examples: give --data, not one photo")
        if self.runs and self.words > 1:
            raise ValueError("--words: finished analyses have one word each; leave out --from")
        return self


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "select", SelectOptions, select)


def select(options: SelectOptions) -> int:
    """Choose the layers to edit from contributions, noise sensitivity and patching."""
    from attrib.selection import combine_words

    if options.split is None and options.data in NAMED_SPLITS:
        options = options.model_copy(update={"split": "validation"})
    out = results_folder("select", options)
    grid = None if options.against is None else _read_grid(options.against)
    reports, files, quarantined = [], [], []
    with caching():  # the model is read once for all words
        for given, folder in _words(options, out):
            made = _evidence(given, folder)
            if made is not None:
                report, written = _written(given, made[0], folder)
                reports.append(report)
                files += written
                quarantined += made[1]
    if not reports:  # a dry run, or another process writes the results
        return ExitCode.DONE
    report = combine_words(reports)
    if len(reports) > 1:
        files.append(report.save(out / LAYERS))
        log(f"select: of one word at a time: attrib report --from {out / 'word-1'}")
    print(_said(report))
    if grid is not None:
        files += _judge(report, grid, out)
    print("\n".join(f"  {path}" for path in files))
    return exit_code_for(quarantined, options.max_failures)


def _words(options: SelectOptions, out: Path) -> list[tuple[SelectOptions, Path]]:
    """The options and the folder of each word of the answers that is looked at."""
    if options.words == 1:
        return [(options, out)]
    first = prefix_length(options)
    return [
        (options.model_copy(update={"answer_prefix": first + number}), out / f"word-{number + 1}")
        for number in range(options.words)
    ]


def _evidence(options: SelectOptions, out: Path) -> "tuple[list[Result], list[Quarantined]] | None":
    """What was computed already, where it is given, or is made now; None as `make_evidence`."""
    if options.runs:
        return [r for folder in options.runs for r in _results(folder)], []
    return make_evidence(options, out)


def _written(
    options: SelectOptions, results: "list[Result]", out: Path
) -> "tuple[LayerReport, list[Path]]":
    from attrib import plots
    from attrib.files import write_text
    from attrib.selection import evidence_table, gather, select_layers

    report = select_layers(results, options.rule, number=options.number, seed=options.seed)
    report = replace(report, provenance={**report.provenance, "invocation": invocation()})
    table = evidence_table(gather(results), seed=options.seed)
    files = [
        report.save(out / LAYERS),
        write_text(out / "evidence.csv", _csv(table)),
        write_text(out / "scores.csv", _csv(report.scores())),
        *plots.save(plots.selection(report, table), out / "selection"),
    ]
    return report, files


def _said(report: "LayerReport") -> str:
    from attrib.report.selection_summary import summarize_selection
    from attrib.selection import summarize_words

    return "\n".join(filter(None, [summarize_words(report), summarize_selection(report)]))


def _judge(report: "LayerReport", grid: "pd.DataFrame", out: Path) -> list[Path]:
    """Print what the picks cost on a grid, and which evidence predicts it; the tables' files."""
    from attrib.files import write_text
    from attrib.report.selection_summary import summarize_regret
    from attrib.selection import fixed_picks, picks_of, rank_correlations, regret

    judged = regret(grid, picks_of(report) | fixed_picks(report.num_layers))
    told = rank_correlations(grid, report.scores())
    print(summarize_regret(judged, report.rule))
    for table in (judged, told):
        print(f"\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
    return [
        write_text(out / "regret.csv", _csv(judged)),
        write_text(out / "correlations.csv", _csv(told)),
    ]


def _csv(table: "pd.DataFrame") -> str:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _results(folder: Path) -> "Iterator[Result]":
    """The main table of a run, or those of the runs in a folder."""
    from attrib.results import Result

    files = [folder / "result.parquet"]
    if not files[0].is_file():
        files = sorted(folder.glob("*/result.parquet"))
    if not files:
        raise AttribError(
            f"--from {folder}: no result.parquet there; give the folder of a finished run, such "
            "as the --out of `attrib contributions`"
        )
    for file in files:
        log(f"select: {file}")
        try:
            yield Result.load(file)
        except ValueError as error:
            raise AttribError(str(error)) from error


def _read_grid(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError as error:
        raise AttribError(f"--against {path}: no such file") from error
    except ValueError as error:
        raise AttribError(f"--against {path}: neither CSV nor Parquet: {error}") from error
