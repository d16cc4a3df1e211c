"""`attrib heatmap`: which visual tokens each layer reads, over data or about one photo."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer
from pydantic import Field
from typer import Option

from attrib.cli.analyse import analyse, load_data
from attrib.cli.command import add_command
from attrib.cli.layers import LayerOptions
from attrib.cli.options import PANEL
from attrib.cli.outputs import log, results_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.analyses.heatmaps import Perturbation
    from attrib.results import Result

NOISE_OPTIONS = ("noise", "unit", "radius", "draws", "site")


class NoiseOptions(LayerOptions):
    """How visual states are perturbed."""

    preset: Annotated[
        Literal["paper", "published-code"],
        Option(help="What the options below are if they are not given: as in the paper, or as the "
               "authors' program has them.", rich_help_panel=PANEL),
    ] = "paper"  # fmt: skip
    noise: Annotated[
        float | None,
        Option(help="Standard deviation of the noise on a token. Much noise needs many draws: try "
               "0.1.", show_default="3, or 0.7", min=0, rich_help_panel=PANEL),
        Field(ge=0),
    ] = None  # fmt: skip
    unit: Annotated[
        Literal["std", "abs"] | None,
        Option(help="std: noise counts standard deviations of the visual states; abs: it is "
               "absolute.", show_default="std, or abs", rich_help_panel=PANEL),
    ] = None  # fmt: skip
    radius: Annotated[
        int | None,
        Option(help="Perturb so many rows and columns around a token with it.",
               show_default="0, or 3", min=0, rich_help_panel=PANEL),
        Field(ge=0),
    ] = None  # fmt: skip
    draws: Annotated[
        int | None,
        Option(help="Draws of noise to average over.", show_default="1, or 10", min=1,
               rich_help_panel=PANEL),
        Field(ge=1),
    ] = None  # fmt: skip
    site: Annotated[
        Literal["block", "attention"] | None,
        Option(help="Where noise goes in: at the layer's input, or behind its norm.",
               show_default="block, or attention", rich_help_panel=PANEL),
    ] = None  # fmt: skip

    def perturbation(self) -> "Perturbation":
        """The noise asked for: the preset, with what was given in its place."""
        from attrib.analyses.heatmaps import PUBLISHED_CODE, Perturbation

        preset = PUBLISHED_CODE if self.preset == "published-code" else {}
        given = {name: getattr(self, name) for name in NOISE_OPTIONS}
        typed = {name: value for name, value in given.items() if value is not None}
        return Perturbation(**{**preset, **typed}, seed=self.seed)


class HeatmapOptions(NoiseOptions):
    """Options of `attrib heatmap`."""

    free: ClassVar[frozenset[str]] = LayerOptions.free | {"pictures"}

    pictures: Annotated[
        int,
        Option(help="Lay the heatmaps of so many samples over their images.", min=0,
               rich_help_panel=PANEL),
        Field(ge=0),
    ] = 3  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "heatmap", HeatmapOptions, heatmap)


def heatmap(options: HeatmapOptions) -> int:
    """Which visual tokens each layer's attention reads (VisEdit, Figs. 1, 4 and 7)."""
    from attrib import plots
    from attrib.analyses.tables import measure_heatmaps
    from attrib.report.heatmap_summary import summarize_heatmaps

    def draw(result: "Result") -> dict[str, "Axes"]:
        curve = {"heat-by-layer": plots.heatmap_by_layer(result)}
        return {**_pictures(options, result), **curve}

    how = say_noise("heatmap", options)
    measure = partial(measure_heatmaps, how=how, layers=options.layer_list())
    return analyse("heatmap", options, measure, draw, summarize_heatmaps)


def say_noise(command: str, options: NoiseOptions) -> "Perturbation":
    """The noise asked for, once it is said on standard error what that is."""
    how = options.perturbation()
    log(f"{command}: noise {how.noise:g} {how.unit}, radius {how.radius}, draws {how.draws}, at "
        f"the {how.site}'s input, seed {how.seed}")  # fmt: skip
    return how


def _pictures(options: HeatmapOptions, result: "Result") -> dict[str, "Axes"]:
    """The first samples' heatmaps over their images, from the tables that the run has saved."""
    from attrib import plots
    from attrib.results import Result

    out = results_folder("heatmap", options)
    grids = Result.load(out / "grids.parquet").frame.set_index("example")
    picture = out / "picture.parquet"
    patches = Result.load(picture).frame if picture.is_file() else None
    figures = {}
    samples = {sample.id: sample for sample in load_data(options)}
    for number, example in enumerate(list(grids.index)[: options.pictures]):
        request = samples[example].request
        assert request.image is not None, "a sample without an image has no heatmap"
        drawn = plots.heatmap_pictures(
            request.image,
            _of(result.frame, example),
            None if patches is None else _of(patches, example),
            grids.loc[example],
            title=request.prompt,
        )
        alone = len(grids) == 1
        figures |= {(kind if alone else f"{kind}-{number}"): ax for kind, ax in drawn.items()}
    return figures


def _of(frame: Any, example: str) -> Any:
    return frame[frame["example"] == example]
