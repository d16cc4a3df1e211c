"""Layer selection from samples: run the analyses that the rules need, then select.

report = attrib.pipeline.select.select(vlm, samples, out="runs/layers")
report.layers                                     # {"text": [..], "visual": [..]}
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from attrib.errors import AttribError
from attrib.files import write_text
from attrib.pipeline.analysis import Analysis
from attrib.pipeline.run import execute, make_analysis, save_quarantined, save_tables, start
from attrib.pipeline.source import as_data
from attrib.results import Result
from attrib.runs import Rank, Run
from attrib.selection import (
    GridEvaluation,
    LayerReport,
    evidence_table,
    gather,
    select_layers,
)
from attrib.vocabulary import RuleName

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample
    from attrib.model.vlm import VLM

LAYERS = "layers.json"
# Folder -> analysis and its options. The last prompt token is excluded: editors do not write there.
EVIDENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "contributions": ("contributions", {}),
    "sweep-text": ("sweep", {"modality": "text", "exclude_last": True}),
    "sweep-visual": ("sweep", {"modality": "visual"}),
    "patching": ("patching", {}),
    "attention": ("attention", {}),
}
Make = Callable[[str, dict[str, Any]], Analysis]  # an analysis, from its name and options
logger = getLogger("attrib")


class Started(NamedTuple):
    """An analysis, and its run that may start or continue."""

    run: Run
    analysis: Analysis


def select(
    vlm: "VLM",
    samples: "Sequence[EditSample]",
    out: str | Path | None = None,
    *,
    rule: RuleName = "consensus",
    number: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> LayerReport:
    """Run the analyses that the rules need, and select the layers to edit.

    Args:
        vlm: the model.
        samples: what `attrib.data.load` returns, or a list of `EditSample`.
        out: folder of the runs and of layers.json; interrupted, the same call continues. By default
            nothing is kept on disk.
        rule: the rule that chooses.
        number: layers per modality, best first.
        seed: of noise and bootstrap draws.
        batch_size: samples per pass; by default what is efficient and fits in memory.

    Raises:
        AttribError: No layer can be selected.
    """
    make = partial(with_options, seed=seed, batch_size=batch_size)
    place = TemporaryDirectory() if out is None else nullcontext(out)
    with place as folder:
        started = start_evidence(vlm, as_data(samples), Path(folder), make)
        results = run_evidence(started)
    report = select_layers(results, rule, number=number, seed=seed)
    if out is not None:
        write_selection(report, results, Path(out))
    return report


def with_options(name: str, own: dict[str, Any], **shared: Any) -> Analysis:
    """An analysis with its own and with shared options."""
    return make_analysis(name, {**shared, **own})


def start_evidence(
    vlm: "VLM",
    data: "EditData",
    out: Path,
    make: Make = make_analysis,
    *,
    rank: Rank | None = None,
    invocation: str = "",
) -> list[Started]:
    """The runs of the analyses that the rules need, each in its folder of `out`."""
    analyses = {folder: make(name, own) for folder, (name, own) in EVIDENCE.items()}
    return [
        Started(start(one, vlm, data, out / folder, rank=rank, invocation=invocation), one)
        for folder, one in analyses.items()
    ]


def run_evidence(started: Iterable[Started]) -> list[Result]:
    """Run what is missing and save the tables; no results in any process but the first.

    An analysis that refuses every sample, as patching does without a second image, is left out.
    """
    results = []
    for run, analysis in started:
        try:
            result = execute(run, analysis)
        except AttribError as error:
            logger.warning("%s left out: %s", run.out.name, error)
            continue
        if result is not None:
            save_tables(result, run.out)
            save_quarantined(result.quarantined, run.out)
            results.append(result)
    return results


def write_selection(report: LayerReport, results: Sequence[Result], out: Path) -> list[Path]:
    """Write layers.json, the evidence and the scores as CSV, and their figure; the paths."""
    from attrib import plots

    table = evidence_table(gather(results), seed=report.provenance["seed"])
    return [
        report.save(out / LAYERS),
        _write_csv(table, out / "evidence.csv"),
        _write_csv(report.scores(), out / "scores.csv"),
        *plots.save(plots.selection(report, table), out / "selection"),
    ]


def write_evaluation(evaluation: GridEvaluation, out: Path) -> list[Path]:
    """Write regret.csv (of the first kind of cells) and correlations.csv; the paths."""
    return [
        _write_csv(next(iter(evaluation.regret.values())), out / "regret.csv"),
        _write_csv(evaluation.correlations, out / "correlations.csv"),
    ]


def read_grid(path: Path) -> pd.DataFrame:
    """A grid of scores of trained editors, as `attrib grid` writes it (CSV or Parquet).

    Raises:
        AttribError: There is no such file, or it is of another format.
    """
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except FileNotFoundError as error:
        raise AttribError(f"grid {path}: no such file") from error
    except ValueError as error:
        raise AttribError(f"grid {path}: neither CSV nor Parquet: {error}") from error


def _write_csv(table: pd.DataFrame, path: Path) -> Path:
    return write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
