"""`attrib select`: the layers to edit, from finished runs or from runs that are made first."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from attrib.cli.analyse import command_options
from attrib.cli.command import ExitCode, invocation
from attrib.cli.outputs import SHOWN, exit_code_for, log, plan_lines, print_files, results_folder
from attrib.pipeline import find_analysis
from attrib.pipeline.options import NAMED_SPLITS, PANEL, AnalysisOptions, option
from attrib.pipeline.source import ModelLoader, load_samples, prefix_length
from attrib.vocabulary import RuleName

if TYPE_CHECKING:
    from attrib.pipeline.analysis import Analysis
    from attrib.results import Result

LAYERS = "layers.json"


class SelectOptions(AnalysisOptions):
    """Options of `attrib select`."""

    free = frozenset({"rule", "number", "words", "against"})
    read_with_runs: ClassVar[frozenset[str]] = frozenset(
        {"runs", "rule", "number", "words", "against", "seed", "out", "max_failures"}
    )
    refused = dict.fromkeys(
        ("prompt", "image", "target"), "select needs many examples: give --data, not one photo"
    )

    split: str | None = option(
        None,
        "validation for scenes, so that layers are not selected on the data that editors are "
        "tested on; vqa-train, vqa-eval, caption-train or caption-eval for a folder.",
        panel="Data",
        shown="validation",
    )
    runs: list[Path] | None = option(
        None,
        "Folder of a finished run, or a folder of such folders; repeatable. Nothing is computed"
        " then.",
        panel=PANEL,
        shown="none",
        flags=("--from",),
    )
    rule: RuleName = option(
        "consensus",
        "The rule that selects; onset: VisEdit, sensitivity: DualEdit; the last five have no "
        "vote in the consensus.",
        panel=PANEL,
    )
    number: int = option(1, "Layers per modality, best first.", panel=PANEL, ge=1)
    words: int = option(
        1,
        "Analyse this many words of the answer one after the other, from --answer-prefix on; "
        "the earliest selected layer is taken.",
        panel=PANEL,
        ge=1,
    )
    against: Path | None = option(
        None,
        "Grid of scores (CSV or Parquet: text, visual, seed, score) on which the regret of the "
        "selection is computed.",
        panel=PANEL,
    )

    @model_validator(mode="after")
    def _many(self) -> "SelectOptions":
        if self.prompt is not None:
            raise ValueError("select needs many examples: give --data, not one photo")
        if self.runs and self.words > 1:
            raise ValueError("--words: finished analyses have one word each; leave out --from")
        if self.runs and (idle := self.model_fields_set - self.read_with_runs - set(self.refused)):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ValueError(f"--from reads finished runs and computes nothing; leave out {names}")
        return self


def select(options: SelectOptions) -> int:
    """Select the layers to edit from contributions, noise sensitivity and patching."""
    from attrib.pipeline.select import read_grid, write_evaluation, write_selection
    from attrib.report.selection_summary import accuracy, summarize_regret, summarize_selection
    from attrib.selection import combine_words, evaluate_on_grid, select_layers

    options = with_validation_split(options)
    out = folder_of_runs("select", options) or results_folder("select", options)
    grid = None if options.against is None else read_grid(options.against)
    reports, files, quarantined = [], [], {}
    load = ModelLoader()
    for given, folder in _words(options, out):
        results = _read(options.runs) if options.runs else make_evidence(given, folder, load)
        if results is None:  # a dry run, or another process writes the results
            continue
        report = select_layers(results, options.rule, number=options.number, seed=options.seed)
        report = replace(report, provenance={**report.provenance, "invocation": invocation()})
        files += write_selection(report, results, folder)
        reports.append(report)
        quarantined |= {str(row): row for result in results for row in result.quarantined}
    if not reports:
        return ExitCode.DONE
    report = combine_words(reports)
    if len(reports) > 1:
        files.append(report.save(out / LAYERS))
        log(f"select: report of one word: attrib report --from {quote(str(out / 'word-1'))}")
    print("\n".join(filter(None, [accuracy(report), summarize_selection(report)])))
    if grid is not None:
        evaluation = evaluate_on_grid(grid, report)
        print(summarize_regret(evaluation, report.rule))
        for table in (next(iter(evaluation.regret.values())), evaluation.correlations):
            print(f"\n{table.to_string(index=False, float_format='{:.3f}'.format)}")
        files += write_evaluation(evaluation, out)
    print_files(files)
    return exit_code_for(list(quarantined.values()), options.max_failures)


def folder_of_runs(command: str, options: SelectOptions) -> Path | None:
    """The folder for results that are read from runs, named by the first of them; None without."""
    if not options.runs:
        return None
    return options.out or Path("runs") / f"{command}-{options.runs[0].resolve().name}"


def with_validation_split(options: Any) -> Any:
    """The options with the split on which layers are selected, unless one is given."""
    if options.split is None and options.data in NAMED_SPLITS:
        return options.model_copy(update={"split": "validation"})
    return options


def make_evidence(options: AnalysisOptions, out: Path, load: ModelLoader) -> "list[Result] | None":
    """The results of all analyses that the rules need; those that exist are not computed again.

    Returns:
        None after a dry run, and in every process but the first.
    """
    from attrib.pipeline.select import EVIDENCE, run_evidence, start_evidence
    from attrib.runs import Rank, refuse_foreign

    rank = Rank.from_environment()
    for folder in EVIDENCE:
        refuse_foreign(out / folder)  # before the model is loaded, which may take minutes
    log(f"select: {options.model} on {options.data} {options.split or ''}, results in {out}")
    data = load_samples(options)
    vlm = load(options, rank.device(options.device))
    make = partial(analysis_for, options)
    started = start_evidence(vlm, data, out, make, rank=rank, invocation=invocation())
    if options.dry_run:
        for run, _ in started if rank.number == 0 else ():
            print("\n".join(plan_lines(run)))
        return None
    results = run_evidence(started)
    rows = dict.fromkeys(str(row) for result in results for row in result.quarantined)
    for row in list(rows)[:SHOWN]:
        log(f"quarantined: {row}")
    return results if rank.number == 0 else None


def analysis_for(options: AnalysisOptions, name: str, own: dict[str, Any]) -> "Analysis":
    """An analysis with the model and data options of a command, and its own options."""
    shared = {field: getattr(options, field) for field in AnalysisOptions.model_fields}
    shared |= {"out": None, "dry_run": False}
    cls = find_analysis(name)
    return cls(command_options(cls)(**shared, **own))


def _words(options: SelectOptions, out: Path) -> "Iterator[tuple[SelectOptions, Path]]":
    """The options and the folder of each analysed word of the answers."""
    if options.words == 1:
        yield options, out
        return
    first = prefix_length(options)
    for number in range(options.words):
        given = options.model_copy(update={"answer_prefix": first + number})
        yield given, out / f"word-{number + 1}"


def _read(folders: Sequence[Path]) -> "list[Result]":
    """The results of the finished runs in folders."""
    from attrib.report import read_runs

    runs = [run for run in read_runs(folders) if run.done == run.total]
    for run in runs:
        log(f"select: {run.folder}")
    return [run.result for run in runs]
