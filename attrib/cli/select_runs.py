"""The analyses that `attrib select` rests on, as runs that share a model: made where missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.analyse import command_options
from attrib.cli.command import invocation
from attrib.cli.models import load_model
from attrib.cli.outputs import log, write_quarantined
from attrib.cli.plan import plan_lines
from attrib.errors import AttribError
from attrib.pipeline.options import AnalysisOptions
from attrib.pipeline.registry import find_analysis
from attrib.pipeline.source import load_samples

if TYPE_CHECKING:
    from attrib.data import Quarantined
    from attrib.pipeline.analysis import Analysis
    from attrib.results import Result
    from attrib.runs import Run

# Folder -> analysis and its options. An editor does not write the last prompt token: noise there
# does not bear on the choice.
EVIDENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "contributions": ("contributions", {}),
    "sweep-text": ("sweep", {"modality": "text", "exclude_last": True}),
    "sweep-visual": ("sweep", {"modality": "visual"}),
    "patching": ("patching", {}),
    "attention": ("attention", {}),
}


def make_evidence(
    options: AnalysisOptions, out: Path
) -> "tuple[list[Result], list[Quarantined]] | None":
    """The results of all analyses; those that exist are not computed again.

    Each is a run in a folder of its own in `out`, as its own command would make it there. An
    analysis that refuses every sample, as patching does without a second image, is left out.

    Returns:
        None after a dry run, and in all processes but the first of several.
    """
    from attrib import runs
    from attrib.pipeline.run import start

    rank = runs.Rank.from_environment()
    analyses = dict(_analyses(options))
    for folder in analyses:
        runs.refuse_foreign(out / folder)  # before the model is loaded, which may take minutes
    log(f"select: {options.model} on {options.data} {options.split or ''}, results in {out}")
    data = load_samples(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    prepared = {
        folder: start(analysis, vlm, data, out / folder, rank=rank, invocation=invocation())
        for folder, analysis in analyses.items()
    }
    if options.dry_run:
        for run in prepared.values() if rank.number == 0 else ():
            print("\n".join(plan_lines(run, options.batch_size)))
        return None
    made = _execute(prepared, analyses)
    return made if rank.number == 0 else None


def _analyses(options: AnalysisOptions) -> "Iterator[tuple[str, Analysis]]":
    """Folder and analysis, with the defaults of each command."""
    shared = {name: getattr(options, name) for name in AnalysisOptions.model_fields}
    shared = {name: value for name, value in shared.items() if name not in ("out", "dry_run")}
    for folder, (name, own) in EVIDENCE.items():
        cls = find_analysis(name)
        yield folder, cls(command_options(cls)(**shared, **own))


def _execute(
    prepared: "dict[str, Run]", analyses: "dict[str, Analysis]"
) -> "tuple[list[Result], list[Quarantined]]":
    from attrib.pipeline.run import execute

    results: list[Result] = []
    quarantined: dict[str, Quarantined] = {}
    for folder, run in prepared.items():
        try:
            result = execute(run, analyses[folder])
        except AttribError as error:
            log(f"select: {folder} left out: {error}")
            continue
        if result is None:
            continue
        result.save(run.out / "result.parquet")
        write_quarantined(run.out, result.quarantined)
        results.append(result)
        quarantined |= {str(row): row for row in result.quarantined}
    return results, list(quarantined.values())
