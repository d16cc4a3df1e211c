"""A montage of heatmaps on one pair of axes: samples in rows, image and layers in columns."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.estimates import Estimate, estimate
from figures.figure import Measured
from figures.frames import by_layer, floats, integers, records, select_rows
from figures.heatmap_gallery import NOISES
from figures.scene_objects import SIDES, question_text
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP, GAP = 1.08, 0.35  # from column to column; extra space between blocks
MOSTLY = 0.5  # of the heatmaps must be hottest on the object asked about
Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw_montage(
    ax: "Axes", measured: Measured, style: Style, *, text_width: float = 3.2, size: float = 7.5
) -> None:
    """Draw a row per sample: question and answer, image, and a heatmap per noise and layer.

    Every heatmap has its own colour range. A frame marks the object asked about.

    Args:
        ax: The axes.
        measured: Tables and images of `heatmap_gallery.heatmap_tables`.
        style: Colours.
        text_width: Width of the text, in widths of an image.
        size: Font size in points.
    """
    heat, samples = measured.tables["heat"], records(measured.tables["samples"])
    layers = layers_in(heat)
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.set_xlim(-text_width, _column(len(NOISES), 0, len(layers)) - GAP)
    ax.set_ylim(len(samples) * STEP, -0.75)
    ax.set_autoscale_on(False)
    for block, (noise, label) in enumerate(NOISES.items()):
        x = _column(block, 0, len(layers))
        ax.text(x, -0.42, label, fontsize=8.5, fontweight="bold")
        for i, layer in enumerate(layers):
            x = _column(block, i, len(layers))
            ax.text(x + 0.5, -0.08, f"layer {layer}", fontsize=7.5, ha="center")
            for row, sample in enumerate(samples):
                cells = heatmap_array(heat, str(sample["example"]), noise, layer)
                _show(ax, cells, _box(sample, "grid_", measured, x, row), style.heat)
                _frame(ax, _box(sample, "", measured, x, row), style)
    for row, sample in enumerate(samples):
        pixels = measured.images[str(sample["example"])]
        height, width = (np.asarray(pixels.shape[:2]) / max(pixels.shape[:2])).tolist()
        _show(ax, pixels, (0.0, row * STEP, width, row * STEP + height), None)
        _frame(ax, _box(sample, "", measured, 0.0, row), style)
        text = f"{sample['example']}: {question_text(sample['prompt'])} {sample['answer']!r}"
        lines = "\n".join(textwrap.wrap(text, round(text_width * 10)))
        ax.text(-0.08, row * STEP + 0.5, lines, fontsize=size, ha="right", va="center")


def heatmap_array(
    heat: pd.DataFrame, example: str, noise: str, layer: int
) -> Float[np.ndarray, "row col"]:
    """Return one heatmap of the table "heat" as an array."""
    rows = select_rows(heat, example=example, noise=noise)
    row, col = integers(rows, "row"), integers(rows, "col")
    cells = np.full((row.max() + 1, col.max() + 1), np.nan)
    cells[row, col] = floats(rows, str(layer))
    return cells


def layers_in(heat: pd.DataFrame) -> list[int]:
    """Return the layers of the table "heat"."""
    return [int(name) for name in heat.columns if str(name).isdigit()]


def hit_rate(measured: Measured, noise: str, layers: Sequence[int]) -> Estimate:
    """Return the share of heatmaps of some layers whose hottest cell is on the object."""
    return estimate(per_example(measured, noise, layers), seed=measured.about["seed"])


def per_example(
    measured: Measured, column: str, layers: Sequence[int]
) -> Float[np.ndarray, " example"]:
    """Return the mean over some layers of a column of the table "pointing", per example."""
    return by_layer(measured.tables["pointing"], column)[:, list(layers)].mean(1)


def describe_hottest(measured: Measured, noise: str) -> str:
    """Describe which cell of each sample's heatmaps is hottest."""
    heat, parts = measured.tables["heat"], []
    for sample in records(measured.tables["samples"]):
        places = []
        for layer in layers_in(heat):
            cells = heatmap_array(heat, str(sample["example"]), noise, layer)
            row, col = np.unravel_index(int(np.nanargmax(cells)), cells.shape)
            places.append(f"layer {layer} row {row + 1} column {col + 1}")
        parts.append(f"{sample['example']} ({sample['prompt']}): {', '.join(places)}")
    return "; ".join(parts)


def _column(block: int, i: int, num_layers: int) -> float:
    """Return the left edge of a column; the image is at 0."""
    return (1 + block * num_layers + i) * STEP + (block + 1) * GAP


def _box(sample: Mapping[str, Any], prefix: str, measured: Measured, x: float, row: int) -> Box:
    """Return a box of a sample on the axes, where the longer side of an image is 1."""
    longer = max(measured.images[str(sample["example"])].shape[:2])
    left, top, right, bottom = (float(sample[f"{prefix}{side}"]) / longer for side in SIDES)
    return left + x, top + row * STEP, right + x, bottom + row * STEP


def _show(ax: "Axes", values: np.ndarray, box: Box, colors: str | None) -> None:
    left, top, right, bottom = box
    ax.imshow(values, cmap=colors, interpolation="nearest", extent=(left, right, bottom, top))


def _frame(ax: "Axes", box: Box, style: Style) -> None:
    """Draw a dashed frame, if the box is known."""
    left, top, right, bottom = box
    if np.isfinite(left):
        around = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        ax.plot(*around, "-", color="white", linewidth=1.2)
        ax.plot(*around, "--", color=style.colors["bad"], linewidth=0.8)
