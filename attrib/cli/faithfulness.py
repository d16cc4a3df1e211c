"""`attrib faithfulness`: do heatmaps point at the object asked about, where the truth is known?"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from attrib.cli.analyse import analyse, load_data
from attrib.cli.command import add_command
from attrib.cli.heatmap import NoiseOptions, say_noise
from attrib.cli.outputs import results_folder
from attrib.errors import AttribError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LITTLE = 0.1  # noise that leaves a token what it was, to compare with: in standard deviations
NO_OBJECT = "none of the questions is about a single object: take more rows"


class FaithfulnessOptions(NoiseOptions):
    """Options of `attrib faithfulness`."""


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "faithfulness", FaithfulnessOptions, faithfulness)


def faithfulness(options: FaithfulnessOptions) -> int:
    """Do heatmaps point at the object asked about? Against chance, attention and gradients."""
    if options.prompt is not None or options.layers is not None:
        raise AttribError(
            "faithfulness is about all layers and data with a ground truth: leave --prompt and "
            "--layers out"
        )

    from attrib import plots
    from attrib.analyses.tables import measure_faithfulness
    from attrib.data.scenes.ground_truth import ground_truths
    from attrib.report.heatmap_summary import summarize_faithfulness
    from attrib.results import Result

    def draw(result: Result) -> dict[str, "Axes"]:
        return {
            "pointing": plots.faithfulness(result, "hit"),
            "auc": plots.faithfulness(result, "auc"),
            "auc-objects": plots.faithfulness(result, "auc_objects"),
        }

    def about(result: Result) -> str:
        out = results_folder("faithfulness", options)
        return summarize_faithfulness(result, Result.load(out / "all_layers.parquet"))

    asked = say_noise("faithfulness", options)
    little = replace(asked, noise=LITTLE, unit="std")
    how = {"heatmap": asked} | ({} if asked == little else {f"heatmap, noise {LITTLE}": little})
    measure = partial(measure_faithfulness, truths=ground_truths(load_data(options)), how=how)
    return analyse("faithfulness", options, measure, draw, about, empty=NO_OBJECT)
