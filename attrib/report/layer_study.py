"""A selection of layers with all that is known about it: what the report on layers shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from attrib.data import EditSample, Quarantined
from attrib.errors import AttribError
from attrib.report.heatmap_cards import HeatPicture, heat_pictures_of
from attrib.report.run_reader import RunRead
from attrib.results import Result
from attrib.selection import (
    LayerReport,
    RuleName,
    evidence_table,
    fixed_picks,
    gather,
    picks_of,
    rank_correlations,
    regret,
    select_layers,
)
from attrib.selection.evaluate import Pick
from attrib.selection.same_source import named, same_data, same_model

# What `attrib select` rests on, by the names of `RunRead`, and the command that makes each.
EXPECTED = {
    "contributions": "attrib contributions",
    "sweep text": "attrib sweep --modality text --spare-last",
    "sweep visual": "attrib sweep --modality visual",
    "patching": "attrib patching",
    "attention": "attrib attention",
}
VOTES = tuple(name for name in EXPECTED if name != "attention")
ALONE = {"text": "words alone", "visual": "visual tokens alone"}
Samples = Callable[[RunRead], Mapping[str, EditSample]]


class Judged(NamedTuple):
    """What a grid of trained editors says about the picks.

    Attributes:
        source: the grid, in words.
        tables: of `regret`, by what the cells edit: "both", "words alone", "visual tokens alone".
        told: of `rank_correlations`: which evidence predicts the grid.
        cells: how many different ones the grid has, by what they edit.
    """

    source: str
    tables: Mapping[str, pd.DataFrame]
    told: pd.DataFrame
    cells: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class LayerStudy:
    """Everything the report shows.

    Attributes:
        report: the chosen layers.
        evidence: of `evidence_table`.
        runs: what was read, the runs about the chosen data first.
        elsewhere: names of runs that are of the same model and other data.
        missing: the analyses that are not there, and the commands that make them.
        pictures: heatmaps of a few samples.
        no_pictures: why there are none.
        judged: by a grid, where one was given.
        samples: by name, what the examples are; empty where the data cannot be read.
        commands: how to get the same again, and what to do next.
    """

    report: LayerReport
    evidence: pd.DataFrame
    runs: Sequence[RunRead]
    elsewhere: frozenset[str]
    missing: Mapping[str, str]
    pictures: Sequence[HeatPicture]
    no_pictures: str
    judged: Judged | None
    samples: Mapping[str, EditSample]
    commands: Mapping[str, Sequence[str]]

    @property
    def results(self) -> dict[str, Result]:
        """The main tables, by name."""
        return {run.name: run.result for run in self.runs}

    @property
    def unfinished(self) -> list[RunRead]:
        """The runs that lack rows."""
        return [run for run in self.runs if run.done < run.of]

    @property
    def quarantined(self) -> list[Quarantined]:
        """The rows that any of the runs set aside, each once."""
        return list({str(row): row for run in self.runs for row in run.quarantined}.values())


def layer_study(
    runs: Sequence[RunRead],
    rule: RuleName = "consensus",
    *,
    number: int = 1,
    seed: int = 0,
    grid: tuple[str, pd.DataFrame] | None = None,
    samples: Samples = lambda _run: {},
    commands: Mapping[str, Sequence[str]] | None = None,
    pictures: int = 4,
) -> LayerStudy:
    """The layers that some runs choose, and what is known about the choice.

    Args:
        runs: of one model; those of other data than the first are shown and not counted.
        rule: which rule chooses.
        number: layers per modality.
        seed: of the bootstrap draws.
        grid: where a grid of scores comes from, and the grid.
        samples: the samples of a run's data, by name; nothing where they cannot be read.
        commands: by purpose, what to type.
        pictures: how many samples' heatmaps to show at most.

    Raises:
        AttribError: the runs are of different models, or choose no layer.
    """
    _refuse_other_models(runs)
    own = [run for run in runs if _of_same_data(run, _first(runs))]
    others = frozenset(run.name for run in runs if run not in own)
    results = [run.result for run in own]
    report = select_layers(results, rule, number=number, seed=seed)
    pictured, reason = _pictured(runs, samples, pictures)
    return LayerStudy(
        report=report,
        evidence=evidence_table(gather(results), seed=seed),
        runs=[*own, *(run for run in runs if run not in own)],
        elsewhere=others,
        missing={n: c for n, c in EXPECTED.items() if n not in {run.name for run in own}},
        pictures=pictured,
        no_pictures=reason,
        judged=None if grid is None else judged_by(grid[1], report, grid[0]),
        samples=samples(_first(runs)),
        commands=commands or {},
    )


def judged_by(grid: pd.DataFrame, report: LayerReport, source: str | Path = "") -> Judged:
    """What the picks of the rules and the fixed choices cost, by what the cells of a grid edit.

    Raises:
        AttribError: the grid lacks columns, or has none of the picks in any of its kinds.
    """
    both = picks_of(report) | fixed_picks(report.num_layers)
    kinds: dict[str, dict[str, Pick]] = {"both": both}
    for side, (modality, name) in enumerate(ALONE.items()):
        alone = {rule: choice.layer for rule, choice in report.choices[modality].items()}
        alone |= {name: pick[side] for name, pick in fixed_picks(report.num_layers).items()}
        kinds[name] = {
            pick: (layer, None) if side == 0 else (None, layer) for pick, layer in alone.items()
        }
    tables, refusals = {}, []
    for name, picks in kinds.items():
        try:
            tables[name] = regret(grid, picks)
        except AttribError as error:
            refusals.append(error)
    if not tables:
        raise refusals[0]
    told = rank_correlations(grid, report.scores())
    return Judged(str(source), tables, told, _cells(grid))


def _cells(grid: pd.DataFrame) -> dict[str, int]:
    pairs = grid.drop_duplicates(["text", "visual"])
    text, visual = (np.asarray(pairs[modality].notna(), bool) for modality in ("text", "visual"))
    return {
        "both": int((text & visual).sum()),
        ALONE["text"]: int((text & ~visual).sum()),
        ALONE["visual"]: int((~text & visual).sum()),
    }


def _first(runs: Sequence[RunRead]) -> RunRead:
    """The run whose data counts: of those with a vote in the choice, the first."""
    return next((run for run in runs if run.name in VOTES), runs[0])


def _of_same_data(run: RunRead, other: RunRead) -> bool:
    one, two = (r.result.provenance.get("data", {}) for r in (run, other))
    return same_data(one, two)


def _refuse_other_models(runs: Sequence[RunRead]) -> None:
    first = runs[0].result.provenance.get("model", {})
    for run in runs[1:]:
        other = run.result.provenance.get("model", {})
        if not same_model(first, other):
            raise AttribError(
                f"{runs[0].folder} is of {named(first)}, {run.folder} of {named(other)}: a report "
                "is about one model"
            )


def _pictured(
    runs: Sequence[RunRead], samples: Samples, number: int
) -> tuple[list[HeatPicture], str]:
    """Heatmaps to show, or why there are none."""
    there = [run for run in runs if run.name == "heatmap"]
    if not there:
        return (
            [],
            "No heatmaps were made: the command attrib heatmap makes them, on the same model.",
        )
    run = max(there, key=lambda run: run.result.examples)
    found = heat_pictures_of(run, samples(run), number)
    return found, "" if found else "The images that the heatmaps are about cannot be read any more."
