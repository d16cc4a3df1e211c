"""Heatmaps, and their faithfulness: options of the noise, figures and summaries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attrib.pipeline.analysis import Analysis, AnswerTokenOptions, Plots
from attrib.pipeline.options import PANEL, LayerOptions, MeasureOptions, option
from attrib.vocabulary import NoiseSite, Preset, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.analyses.heatmaps import Perturbation
    from attrib.data import EditSample
    from attrib.results import Result
    from attrib.runs.collected import Measure


NOISE_OPTIONS = ("noise", "unit", "radius", "draws", "site")


class NoiseOptions(MeasureOptions):
    """How visual states are perturbed."""

    preset: Preset = option(
        "paper",
        "Defaults of the options below: the paper's, or those of the authors' program.",
        panel=PANEL,
    )
    noise: float | None = option(
        None,
        "Standard deviation of the noise on a token. Much noise needs many draws: try 0.1.",
        panel=PANEL,
        shown="3; published-code: 0.7",
        ge=0,
    )
    unit: Unit | None = option(
        None,
        "std: noise counts standard deviations of the visual states; abs: it is absolute.",
        panel=PANEL,
        shown="std; published-code: abs",
    )
    radius: int | None = option(
        None,
        "Perturb the neighbours within this many rows and columns as well.",
        panel=PANEL,
        shown="0; published-code: 3",
        ge=0,
    )
    draws: int | None = option(
        None, "Draws of noise to average over.", panel=PANEL, shown="1; published-code: 10", ge=1
    )
    site: NoiseSite | None = option(
        None,
        "Add the noise to the layer's input (block) or after its norm (attention).",
        panel=PANEL,
        shown="block; published-code: attention",
    )

    def perturbation(self) -> "Perturbation":
        """The noise: the preset, with the options given."""
        from attrib.analyses.heatmaps import PUBLISHED_CODE, Perturbation

        preset: dict[str, Any] = PUBLISHED_CODE if self.preset == "published-code" else {}
        given = {name: getattr(self, name) for name in NOISE_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        return Perturbation(**{**preset, **given}, seed=self.seed)

    def announce(self, command: str) -> str:
        """The noise in one line."""
        how = self.perturbation()
        return (
            f"{command}: noise {how.noise:g} {how.unit}, radius {how.radius}, draws {how.draws}, "
            f"at the {how.site}'s input, seed {how.seed}"
        )


class HeatmapOptions(NoiseOptions, LayerOptions, AnswerTokenOptions):
    """Options of `attrib heatmap`."""

    free = frozenset({"pictures"})

    pictures: int = option(
        3, "Draw the heatmaps of this many samples on their images.", panel=PANEL, ge=0
    )


class Heatmap(Analysis[HeatmapOptions]):
    """Which visual tokens each layer's attention reads (VisEdit, Figs. 1, 4, 7)."""

    name = "heatmap"
    Options = HeatmapOptions

    def announce(self) -> str:
        """The noise in force."""
        return self.options.announce(self.name)

    def measure(self, samples: "Sequence[EditSample]") -> "Measure":
        """See `attrib.analyses.heatmaps.measure_heatmaps`."""
        from attrib.analyses.heatmaps import measure_heatmaps

        del samples
        how, layers = self.options.perturbation(), self.options.layer_list()
        return partial(measure_heatmaps, how=how, layers=layers)

    def plots(self, result: "Result") -> Plots:
        """Heatmaps on the images of the first samples, then the mean value per layer."""
        from attrib import plots

        curve = {"heat-by-layer": partial(plots.heatmap_by_layer, result)}
        return {**self._pictures(result), **curve}

    def summarize(self, result: "Result") -> str:
        """The layers whose attention depends most on the image."""
        from attrib.report.intervention_summaries import summarize_heatmaps

        return summarize_heatmaps(result)

    def _pictures(self, result: "Result") -> Plots:
        if "grids" not in result.tables:
            return {}
        samples = {sample.id: sample for sample in result.samples}
        counts = Counter(map(str, result.tables["grids"].frame["example"]))  # of images
        examples = [e for e in counts if e in samples][: self.options.pictures]
        figures = {}
        for number, example in enumerate(examples):
            suffix = "" if len(counts) == 1 else f"-{number}"
            for i in range(counts[example]):
                drawn = partial(_draw, result, samples[example], i)
                one = suffix if counts[example] == 1 else f"{suffix}-image-{i}"
                kinds = ("picture", "queries") if "picture" in result.tables else ("heatmap",)
                figures |= {f"{kind}{one}": partial(drawn, kind) for kind in kinds}
        return figures


def _draw(result: "Result", sample: "EditSample", number: int, kind: str) -> "Axes":
    from attrib import plots
    from attrib.plots.heatmaps import rows_of_image

    images, prompt = sample.request.images, sample.request.prompt
    values: Any = result.where(example=sample.id).frame["value"]
    several = len(images) > 1
    patches = result.tables.get("picture")
    return plots.heatmap_pictures(
        images[number],
        rows_of_image(result.frame, sample.id, number),
        None if patches is None else rows_of_image(patches.frame, sample.id, number),
        rows_of_image(result.tables["grids"].frame, sample.id, number).iloc[0].to_dict(),
        title=f"{prompt} (image {number + 1} of {len(images)})" if several else prompt,
        # One scale for all images shows which of them is read.
        limits=(float(values.min()), float(values.max())) if several else None,
    )[kind]


LITTLE_NOISE = 0.1  # in standard deviations: a perturbed token still resembles itself


class Faithfulness(Analysis[NoiseOptions]):
    """Do heatmaps point at the object asked about? Compared with attention and gradients."""

    name = "faithfulness"
    Options = NoiseOptions
    needs_dataset = True
    unused = "not about a single object"
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
        from attrib.report.intervention_summaries import faithfulness_table, summarize_faithfulness

        all_layers = result.tables["all_layers"]
        table = faithfulness_table(result, all_layers)
        text = table.to_string(index=False, float_format="{:.2f}".format)
        return f"{summarize_faithfulness(result, all_layers)}\n\n{text}"
