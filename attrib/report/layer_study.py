"""A selection of layers with its evidence: the content of the layer report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from attrib.data import EditSample, Quarantined
from attrib.errors import AttribError
from attrib.report.heatmap_cards import HeatmapCard, answers_of, heatmap_cards
from attrib.report.run_reader import RunRead
from attrib.selection import (
    GridEvaluation,
    LayerReport,
    evaluate_on_grid,
    evidence_table,
    gather,
    select_layers,
)
from attrib.selection.report import named, same_data, same_model
from attrib.vocabulary import RuleName

# The runs that `attrib select` makes, by `RunRead.name`, and the command of each.
EXPECTED = {
    "contributions": "attrib contributions",
    "sweep text": "attrib sweep --modality text --spare-last",
    "sweep visual": "attrib sweep --modality visual",
    "patching": "attrib patching",
    "attention": "attrib attention",
}
VOTING = tuple(name for name in EXPECTED if name != "attention")
NAMES = {
    "sweep text": "noise on text tokens",
    "sweep visual": "noise on visual tokens",
    "heatmap": "heatmaps",
    "faithfulness": "pointing game",
}
NO_HEATMAPS = "No heatmaps: run attrib heatmap on the same model and give its folder."
NO_IMAGES = "No heatmaps: the images of the heatmap run cannot be read any more."
Samples = Callable[[RunRead], Mapping[str, EditSample]]


@dataclass(frozen=True, eq=False)
class LayerStudy:
    """The content of the layer report.

    Attributes:
        report: the selected layers.
        evidence: from `evidence_table`.
        runs: the runs that were read, those on the selection's data first.
        other_data: names of the runs on other data, which are shown but not counted.
        missing: the expected analyses without a run, with the command of each.
        cards: heatmaps of a few samples.
        evaluation: on a grid of trained editors, if one was given.
        grid_source: where the grid was read.
        samples: of the selection's data, by id; empty if the data cannot be read.
        commands: by purpose, to reproduce the report and to continue.
    """

    report: LayerReport
    evidence: pd.DataFrame
    runs: Sequence[RunRead]
    other_data: frozenset[str]
    missing: Mapping[str, str]
    cards: Sequence[HeatmapCard]
    evaluation: GridEvaluation | None
    grid_source: str
    samples: Mapping[str, EditSample]
    commands: Mapping[str, Sequence[str]]

    @property
    def counted(self) -> list[RunRead]:
        """The runs on the selection's data."""
        return [run for run in self.runs if run.name not in self.other_data]

    @property
    def heatmap_run(self) -> RunRead | None:
        """The heatmap run with the most examples."""
        runs = [run for run in self.runs if run.name == "heatmap"]
        return max(runs, key=lambda run: run.result.examples, default=None)

    @property
    def quarantined(self) -> list[Quarantined]:
        """The rows that a run could not use, each once."""
        return list({str(row): row for run in self.runs for row in run.quarantined}.values())

    @property
    def partial(self) -> str:
        """The analyses and rows that are missing, as "n of N"; empty if none."""
        parts = [f"{len(EXPECTED) - len(self.missing)} of {len(EXPECTED)} analyses"]
        parts = parts if self.missing else []
        parts += [
            f"{run.done} of {run.total} examples of {name_of(run.name)}"
            for run in self.runs if run.done < run.total
        ]  # fmt: skip
        return f"partial: {'; '.join(parts)}" if parts else ""


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
    """Select layers from runs, and collect what the layer report shows.

    Args:
        runs: of one model; those on other data than the first voting one are not counted.
        rule: the rule that chooses.
        number: layers per modality.
        seed: of the bootstrap draws.
        grid: scores of editors trained on a grid of layers, after the name of their source.
        samples: returns the samples of a run's data by id, or nothing if they cannot be read.
        commands: by purpose, to reproduce the report and to continue.
        pictures: largest number of heatmap cards.

    Raises:
        AttribError: The runs are of different models, or no layer can be selected.
    """
    _require_one_model(runs)
    first = next((run for run in runs if run.name in VOTING), runs[0])
    data = first.result.provenance.get("data", {})
    own = [run for run in runs if same_data(run.result.provenance.get("data", {}), data)]
    others = [run for run in runs if run not in own]
    results = [run.result for run in own]
    report = select_layers(results, rule, number=number, seed=seed)
    study = LayerStudy(
        report=report,
        evidence=evidence_table(gather(results), seed=seed),
        runs=[*own, *others],
        other_data=frozenset(run.name for run in others),
        missing={n: c for n, c in EXPECTED.items() if n not in {run.name for run in own}},
        cards=[],
        evaluation=None if grid is None else evaluate_on_grid(grid[1], report),
        grid_source="" if grid is None else grid[0],
        samples=samples(first),
        commands=commands or {},
    )
    run = study.heatmap_run
    cards = [] if run is None else heatmap_cards(run, samples(run), pictures, answers_of(own))
    return replace(study, cards=cards)


def name_of(run: str) -> str:
    """The name of a run for readers."""
    return NAMES.get(run, run)


def _require_one_model(runs: Sequence[RunRead]) -> None:
    first = runs[0].result.provenance.get("model", {})
    for run in runs[1:]:
        other = run.result.provenance.get("model", {})
        if not same_model(first, other):
            raise AttribError(
                f"{runs[0].folder} is of {named(first)}, {run.folder} of {named(other)}: a report "
                "is about one model"
            )
