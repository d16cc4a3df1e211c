"""The analyses that `attrib select` rests on, as runs that share a model: made where missing."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attrib.cli.analyse import load_data
from attrib.cli.command import invocation
from attrib.cli.models import load_model
from attrib.cli.options import AnalysisOptions, AttentionOptions, ContributionOptions
from attrib.cli.outputs import log, write_quarantined
from attrib.cli.patching import PatchingOptions
from attrib.cli.plan import planned
from attrib.cli.sweep import SweepOptions
from attrib.errors import AttribError

if TYPE_CHECKING:
    from attrib.data import EditData, Quarantined
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs import Rank, Run
    from attrib.runs.collect import Measure


class Analysis(NamedTuple):
    """One analysis: its folder, its command, that command's options, and what it measures."""

    folder: str
    command: str
    options: AnalysisOptions
    measure: "Measure"


def make_evidence(
    options: AnalysisOptions, out: Path
) -> "tuple[list[Result], list[Quarantined]] | None":
    """The results of all analyses, of which those that are there already are not computed again.

    Each is a run in a folder of its own in `out`, as its own command would make it there. An
    analysis that refuses every sample, as patching does without a second image, is left out.

    Returns:
        None after a dry run, and in all processes but the first of several.
    """
    from attrib import runs

    rank = runs.Rank.from_environment()
    analyses = list(_analyses(options))
    for analysis in analyses:
        runs.refuse_foreign(out / analysis.folder)  # before minutes go into reading a model
    log(f"select: {options.model} on {options.data} {options.split or ''}, results in {out}")
    data = load_data(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    prepared = [_prepare(vlm, data, out, analysis, rank) for analysis in analyses]
    if options.dry_run:
        for run in prepared if rank.number == 0 else ():
            print("\n".join(planned(run, options.batch_size)))
        return None
    return _executed(prepared, analyses, options.batch_size)


def _analyses(options: AnalysisOptions) -> Iterator[Analysis]:
    """What the rules need, with the defaults of each command."""
    from attrib.analyses.tables import (
        measure_attention,
        measure_contributions,
        measure_patching,
        measure_sensitivity,
    )

    shared = {name: getattr(options, name) for name in AnalysisOptions.model_fields}
    shared = {name: value for name, value in shared.items() if name not in ("out", "dry_run")}
    first = ContributionOptions(**shared)
    measure = partial(measure_contributions, key=first.key, norm=first.norm)
    yield Analysis("contributions", "contributions", first, measure)
    for modality in ("text", "visual"):
        # An editor does not write the last prompt token: noise there says nothing about it.
        sweep = SweepOptions(**shared, modality=modality, spare_last=modality == "text")
        measure = partial(
            measure_sensitivity, **sweep.arguments(), unit=sweep.unit, seed=sweep.seed
        )
        yield Analysis(f"sweep-{modality}", "sweep", sweep, measure)
    yield Analysis("patching", "patching", PatchingOptions(**shared), measure_patching)
    yield Analysis("attention", "attention", AttentionOptions(**shared), measure_attention)


def _prepare(vlm: "VLM", data: "EditData", out: Path, analysis: Analysis, rank: "Rank") -> "Run":
    from attrib import runs

    return runs.prepare(
        vlm,
        data,
        out / analysis.folder,
        name=analysis.command,
        options=analysis.options.model_dump(mode="json", exclude={"dry_run"}),
        seed=analysis.options.seed,
        free=runs.NON_IDENTIFYING | {f"options.{option}" for option in analysis.options.free},
        rank=rank,
        invocation=invocation(),
    )  # fmt: skip


def _executed(
    prepared: "list[Run]", analyses: list[Analysis], batch_size: int
) -> "tuple[list[Result], list[Quarantined]] | None":
    from attrib.results import Result

    results: list[Result] = []
    quarantined: dict[str, Quarantined] = {}
    for run, analysis in zip(prepared, analyses, strict=True):
        try:
            outcome = run.execute(analysis.measure, batch_size=batch_size)
        except AttribError as error:
            log(f"select: {analysis.folder} left out: {error}")
            continue
        if outcome is None:
            continue
        result = Result(analysis.command, outcome.tables[analysis.command], outcome.manifest)
        result.save(run.out / "result.parquet")
        write_quarantined(run.out, outcome.quarantined)
        results.append(result)
        quarantined |= {str(row): row for row in outcome.quarantined}
    first = not prepared or prepared[0].rank.number == 0
    return (results, list(quarantined.values())) if first else None
