"""Faithfulness of heatmaps: options, figures and summary."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from attrib.pipeline.analysis import Analysis, Plots
from attrib.pipeline.heatmap import NoiseOptions

if TYPE_CHECKING:
    from attrib.data import EditSample
    from attrib.results import Result
    from attrib.runs.collect import Measure

LITTLE_NOISE = 0.1  # in standard deviations: a perturbed token still resembles itself


class Faithfulness(Analysis[NoiseOptions]):
    """Do heatmaps point at the object asked about? Compared with attention and gradients."""

    name = "faithfulness"
    Options = NoiseOptions
    needs_dataset = True
    empty = "none of the questions is about a single object: take more rows"

    def announce(self) -> str:
        """The noise in force."""
        return self.options.announce(self.name)

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.pointing_game.measure_faithfulness`."""
        from attrib.analyses.pointing_game import measure_faithfulness
        from attrib.data.scenes.ground_truth import ground_truths
        from attrib.pipeline.source import as_data

        how = self.options.perturbation()
        little = replace(how, noise=LITTLE_NOISE, unit="std")
        methods = {"heatmap": how}
        if how != little:
            methods[f"heatmap, noise {LITTLE_NOISE}"] = little
        return partial(measure_faithfulness, truths=ground_truths(as_data(samples)), how=methods)

    def plots(self, result: "Result") -> Plots:
        """Pointing-game hits, AUC against all cells, AUC against other objects."""
        from attrib import plots

        return {
            "pointing": partial(plots.faithfulness, result, "hit"),
            "auc": partial(plots.faithfulness, result, "auc"),
            "auc-objects": partial(plots.faithfulness, result, "auc_objects"),
        }

    def summarize(self, result: "Result") -> str:
        """How often the best method points at the object, with a table of all methods."""
        from attrib.report.heatmap_summary import faithfulness_table, summarize_faithfulness

        all_layers = result.tables["all_layers"]
        table = faithfulness_table(result, all_layers)
        text = table.to_string(index=False, float_format="{:.2f}".format)
        return f"{summarize_faithfulness(result, all_layers)}\n\n{text}"
