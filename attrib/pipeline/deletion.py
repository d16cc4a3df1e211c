"""Insertion and deletion of image cells: options, figure and summary."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.heatmap import LITTLE_NOISE, NoiseOptions
from attrib.pipeline.options import PANEL, option
from attrib.vocabulary import Baseline

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.results import Result
    from attrib.runs.collected import Measure


class DeletionOptions(NoiseOptions):
    """Options of `attrib deletion`."""

    steps: int = option(10, "Steps from the whole image to none of it.", panel=PANEL, ge=2)
    baseline: Baseline = option(
        "mean",
        "What replaces a cell: the image's mean colour, or the image blurred by a cell's width.",
        panel=PANEL,
    )


class Deletion(Analysis[DeletionOptions]):
    """Does the answer depend on what maps mark? Areas under insertion and deletion curves."""

    name = "deletion"
    Options = DeletionOptions

    def announce(self) -> str:
        """The noise and the baseline in force."""
        o = self.options
        return f"{o.announce(self.name)}; {o.steps} steps to the baseline: {o.baseline}"

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.deletion.measure_deletion`."""
        from attrib.analyses.deletion import measure_deletion

        del samples
        o, how = self.options, self.options.perturbation()
        little = replace(how, noise=LITTLE_NOISE, unit="std")
        methods = {"heatmap": how}
        if how != little:
            methods[f"heatmap, noise {LITTLE_NOISE}"] = little
        return partial(
            measure_deletion, how=methods, steps=o.steps, baseline=o.baseline, seed=o.seed
        )

    def plots(self, result: "Result") -> Plots:
        """Both areas of each method."""
        from attrib import plots

        return {"deletion": partial(plots.deletion, result)}

    def summarize(self, result: "Result") -> str:
        """Which map the answer depends on most, against a random one, with a table."""
        from attrib.report.intervention_summaries import summarize_deletion

        return summarize_deletion(result)
