"""Heatmaps over their image: cells at their place, one scale for all layers.

A heatmap value is the squared sine of half an angle, so the shared colour scale follows its square
root: twice as far along the scale is twice the angle.
"""

import io
import math
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from attrib.plots.drawing import AXES, BLUE, MUTED, style

# Lightness grows evenly, also in grey and for colour-blind readers. Cells with low values are
# nearly clear, so that the image stays visible.
HEATMAP_COLORS = "inferno"
OPACITY = (0.25, 0.85)  # of the lowest and the highest value
PANEL_OPACITY = (0.15, 0.7)  # in small panels, where the image shows under every cell
WIDTH, MARGIN = 2.0, 0.55  # of a panel, and of its title and label, in inches
ASPECTS = (0.25, 1.9)  # height of a panel over its width
ACROSS = 4
LONGEST_TITLE = 90
STEPS = 64
Box = tuple[float, float, float, float]
Limits = tuple[float, float]
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
    limits: Limits | None = None,
) -> Axes:
    """The image, then every layer's heatmap over it, with the range of its values below.

    Cells are drawn unsmoothed at their place; parts of the image that the model's processor cut
    off stay uncovered.

    Args:
        image: the image that the model saw.
        maps: one heatmap per layer.
        layers: their numbers.
        box: left, top, right and bottom of the cells, in pixels of the image.
        title: of the figure, such as the prompt.
        note: a line below it, such as how the map was made.
        scale: "shared" colours compare layers; each layer's "own" colours, from its smallest to
            its largest value, make weak heatmaps visible.
        limits: values at the ends of the shared colours; by default the smallest and the largest.
    """
    shared = _norm(maps if limits is None else np.array(limits), 0.5)
    left, right, bottom, top = _extent(image, box)
    figure, panels = _panels(1 + len(layers), title, note, (bottom - top) / (right - left))
    with style():
        _show(panels[0], image, box)
        panels[0].set_title("image", fontsize=9)
        for ax, layer, values in zip(panels[1:], layers, maps, strict=True):
            norm = shared if scale == "shared" else _norm(values)
            draw_overlay(ax, image, values, box, norm, opacity=PANEL_OPACITY)
            _label(ax, layer, values)
        if scale == "shared":
            colors = ScalarMappable(shared, HEATMAP_COLORS)
            bar = figure.colorbar(colors, ax=panels, shrink=0.8, aspect=30)
            bar.set_label(f"heatmap value, {shared.vmin:.2g} to {shared.vmax:.2g}", fontsize=9)
            bar.ax.tick_params(labelsize=8)
    panels[0].set_label(_description(maps, layers, note))
    return panels[0]


def token_bars(
    values: Float[np.ndarray, "layer token"],
    layers: Sequence[int],
    *,
    title: str = "",
    note: str = "",
) -> Axes:
    """Heatmap values of visual tokens without a place in the image: bars, a panel per layer."""
    _, panels = _panels(len(layers), title, note, 0.9)
    high = float(np.nanmax(values)) or 1.0
    with style():
        for ax, layer, heights in zip(panels, layers, values, strict=True):
            ax.bar(np.arange(len(heights)), heights, color=BLUE, width=0.85)
            ax.set_ylim(0, 1.05 * high)
            ax.tick_params(labelsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            _label(ax, layer, heights)
            ax.set_xlabel(f"token, {ax.get_xlabel()}", fontsize=8, color=MUTED)
    panels[0].set_label(_description(values[:, None], layers, note))
    return panels[0]


def draw_overlay(
    ax: Axes,
    image: Image.Image,
    values: Float[np.ndarray, "row col"],
    box: Box,
    norm: Normalize | None = None,
    colors: str = HEATMAP_COLORS,
    opacity: Limits = OPACITY,
) -> None:
    """Draw a heatmap over the image in grey; by default in colours of the map's own range."""
    _show(ax, image.convert("L"), box)
    left, top, right, bottom = box
    norm = norm or _norm(values)
    ax.imshow(
        values, cmap=colors, norm=norm, alpha=_opacity(norm(values), opacity),
        interpolation="nearest",
        extent=(left, right, bottom, top), zorder=2,
    )  # fmt: skip
    _fit(ax, image, box)


def heatmap_png(values: Float[np.ndarray, "row col"]) -> bytes:
    """A PNG of one pixel per cell, to be laid over an image, in colours of the map's own range.

    Cells without a value are clear.
    """
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    shares = Normalize(low, high)(values)
    pixels = np.asarray(matplotlib.colormaps[HEATMAP_COLORS](shares))
    pixels[..., 3] = np.where(np.isfinite(values), _opacity(shares), 0)
    return _png(pixels)


def heatmap_scale_png() -> bytes:
    """A PNG with the colours of heatmaps, from the lowest to the highest value."""
    return _png(np.asarray(matplotlib.colormaps[HEATMAP_COLORS](np.linspace(0, 1, STEPS)[None])))


def heatmap_palette() -> list[str]:
    """The colours of heatmaps from the lowest to the highest value, such as "#000004"."""
    colors = matplotlib.colormaps[HEATMAP_COLORS](np.linspace(0, 1, STEPS))
    return [to_hex(color) for color in colors]


def _opacity(shares: np.ndarray, limits: Limits = OPACITY) -> np.ndarray:
    low, high = limits
    return low + (high - low) * np.nan_to_num(np.ma.filled(shares, 0.0))


def _png(pixels: Float[np.ndarray, "row col 4"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.round(255 * pixels))).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _panels(num: int, title: str, note: str, aspect: float) -> tuple[Figure, list[Axes]]:
    """A figure with `num` empty panels of a height over width, row by row."""
    across = min(num, ACROSS)
    down = math.ceil(num / across)
    height = WIDTH * min(max(aspect, ASPECTS[0]), ASPECTS[1]) + MARGIN
    with style():
        figure = Figure(figsize=(across * WIDTH + 0.9, down * height + 0.5), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, subplot_kw=AXES).ravel().tolist()
    for ax in grid[num:]:
        ax.remove()
    head = title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 3]}..."
    figure.suptitle("\n".join(part for part in (head, note) if part), fontsize=10)
    return figure, grid[:num]


def _norm(values: Float[np.ndarray, "*cells"], power: float = 1.0) -> PowerNorm:
    return PowerNorm(power, float(np.nanmin(values)), float(np.nanmax(values)))


def _show(ax: Axes, image: Image.Image, box: Box) -> None:
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    width, height = image.size
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), zorder=1)
    _fit(ax, image, box)


def _extent(image: Image.Image, box: Box) -> Box:
    """Left, right, bottom and top of the image and all cells, which may lie beyond its edges."""
    left, top, right, bottom = box
    width, height = map(float, image.size)
    return min(0.0, left), max(width, right), max(height, bottom), min(0.0, top)


def _fit(ax: Axes, image: Image.Image, box: Box) -> None:
    left, right, bottom, top = _extent(image, box)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _label(ax: Axes, layer: int, values: Float[np.ndarray, "*cells"]) -> None:
    ax.set_title(f"layer {layer}", fontsize=9)
    ax.set_xlabel(f"{np.nanmin(values):.2g} to {np.nanmax(values):.2g}", fontsize=8, color=MUTED)


def _description(maps: Maps, layers: Sequence[int], note: str) -> str:
    """The text alternative: the place of the highest value in each layer."""
    parts = []
    for layer, values in zip(layers, maps, strict=True):
        if np.isfinite(values).any():
            row, col = np.unravel_index(int(np.nanargmax(values)), values.shape)
            place = f"row {row}, column {col}" if values.shape[0] > 1 else f"token {col}"
            parts.append(f"layer {layer} is highest at {place} ({np.nanmax(values):.2g})")
    size = f"{maps.shape[1]} by {maps.shape[2]} cells" if maps.shape[1] > 1 else "visual tokens"
    content = "; ".join(parts) or "no values"
    return f"Heatmaps of {size}{f' ({note})' if note else ''}: {content}; counted from 0."
