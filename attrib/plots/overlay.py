"""Heatmaps over the image they are about: cells where they lie, numbers beside the colours.

A value is the square of the sine of half an angle. So the colours that all layers share follow its
square root: twice as far along the scale is twice the angle.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from attrib.plots.drawing import BLUE, MUTED, style

COLORS = "viridis"  # equal steps look equal, also in grey and to colour-blind readers
OPACITY = 0.62
WIDTH, HEIGHT = 2.1, 2.35  # of a panel, in inches
ACROSS = 4
LONGEST_TITLE = 90
Box = tuple[float, float, float, float]
Maps = Float[np.ndarray, "layer row col"]


def overlay(
    image: Image.Image,
    maps: Maps,
    layers: Sequence[int],
    box: Box,
    *,
    title: str = "",
    note: str = "",
    scale: Literal["shared", "own"] = "shared",
) -> Axes:
    """The image, then every layer's heatmap over it.

    Under each panel stand the smallest and largest value of its layer. Cells are drawn unsmoothed
    where they lie: parts of the image that the model's processor cut off stay bare.

    Args:
        image: what the heatmaps are about.
        maps: one per layer.
        layers: their numbers.
        box: (left, top, right, bottom) of the cells, in pixels of the image.
        title: of the figure, such as the prompt.
        note: a line below it, such as how the map was made.
        scale: "shared" by all layers, so that they can be compared; or each layer's "own", from its
            smallest to its largest value, so that faint ones can be seen.
    """
    shared = _scale(maps, 0.5)
    figure, panels = _panels(1 + len(layers), title, note)
    with style():
        _show(panels[0], image, box)
        panels[0].set_title("image", fontsize=9)
        for ax, layer, values in zip(panels[1:], layers, maps, strict=True):
            draw_overlay(ax, image, values, box, shared if scale == "shared" else _scale(values))
            _name(ax, layer, values)
        if scale == "shared":
            bar = figure.colorbar(ScalarMappable(shared, COLORS), ax=panels, shrink=0.8, aspect=30)
            bar.set_label(f"heat, {shared.vmin:.2g} to {shared.vmax:.2g}", fontsize=9)
            bar.ax.tick_params(labelsize=8)
    panels[0].set_label(_in_words(maps, layers, note))
    return panels[0]


def query_bars(
    scores: Float[np.ndarray, "layer query"],
    layers: Sequence[int],
    *,
    title: str = "",
    note: str = "",
) -> Axes:
    """The heat of each query of a Q-Former, a panel per layer, all on one vertical scale."""
    _, panels = _panels(len(layers), title, note)
    high = float(np.nanmax(scores)) or 1.0
    with style():
        for ax, layer, values in zip(panels, layers, scores, strict=True):
            ax.set_axis_on()
            ax.bar(np.arange(len(values)), values, color=BLUE, width=0.85)
            ax.set_ylim(0, 1.05 * high)
            ax.tick_params(labelsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            _name(ax, layer, values)
            ax.set_xlabel(f"query, {ax.get_xlabel()}", fontsize=8, color=MUTED)
    panels[0].set_label(_in_words(scores[:, None], layers, note or "one bar per query"))
    return panels[0]


def _panels(num: int, title: str, note: str) -> tuple[Figure, list[Axes]]:
    """A figure with so many empty panels, row by row."""
    across = min(num, ACROSS)
    down = math.ceil(num / across)
    with style():
        figure = Figure(figsize=(across * WIDTH + 0.9, down * HEIGHT + 0.5), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for ax in grid[num:]:
        ax.remove()
    head = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}..."
    figure.suptitle(
        "\n".join(part for part in (head, note) if part), fontsize=10, x=0.01, ha="left"
    )
    return figure, grid[:num]


def _scale(values: Float[np.ndarray, "*cells"], power: float = 1.0) -> PowerNorm:
    return PowerNorm(power, float(np.nanmin(values)), float(np.nanmax(values)))


def draw_overlay(
    ax: Axes,
    image: Image.Image,
    values: Float[np.ndarray, "row col"],
    box: Box,
    scale: Normalize | None = None,
    colors: str = COLORS,
) -> None:
    """A heatmap over a grey image; without a scale, in colours of its own range."""
    _show(ax, image.convert("L"), box)
    left, top, right, bottom = box
    ax.imshow(
        values, cmap=colors, norm=scale or _scale(values), alpha=OPACITY, interpolation="nearest",
        extent=(left, right, bottom, top), zorder=2,
    )  # fmt: skip
    _fit(ax, image, box)


def _show(ax: Axes, image: Image.Image, box: Box) -> None:
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    width, height = image.size
    ax.imshow(image, cmap="gray", extent=(0, width, height, 0), zorder=1)
    _fit(ax, image, box)


def _fit(ax: Axes, image: Image.Image, box: Box) -> None:
    """Show all of the image and all of the cells, some of which may lie beyond its edges."""
    left, top, right, bottom = box
    ax.set_xlim(min(0, left), max(image.width, right))
    ax.set_ylim(max(image.height, bottom), min(0, top))


def _name(ax: Axes, layer: int, values: Float[np.ndarray, "*cells"]) -> None:
    ax.set_title(f"layer {layer}", fontsize=9)
    ax.set_xlabel(f"{np.nanmin(values):.2g} to {np.nanmax(values):.2g}", fontsize=8, color=MUTED)


def _in_words(maps: Maps, layers: Sequence[int], note: str) -> str:
    """The figure for readers who do not see it: where each layer is hottest."""
    parts = []
    for layer, values in zip(layers, maps, strict=True):
        if np.isfinite(values).any():
            row, col = np.unravel_index(int(np.nanargmax(values)), values.shape)
            place = f"row {row}, column {col}" if values.shape[0] > 1 else f"number {col}"
            parts.append(f"layer {layer} is hottest at {place} ({np.nanmax(values):.2g})")
    size = f"{maps.shape[1]} by {maps.shape[2]} cells" if maps.shape[1] > 1 else "queries"
    said = "; ".join(parts) or "no values"
    return f"Heatmaps of {size}{f' ({note})' if note else ''}: {said}; counted from 0."
