"""Samples in rows, their image and heatmaps in columns, on one pair of axes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.figure import Measured
from figures.heat_gallery import NAMES, SIDES
from figures.measuring import by_layer, integers, mean_interval
from figures.rows import numbers, where
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP, GAP = 1.08, 0.35  # from column to column; more between blocks
Box = tuple[float, float, float, float]


def draw_montage(
    ax: "Axes", measured: Measured, style: Style, *, words: float = 3.2, size: float = 7.5
) -> None:
    """A row per sample: question and answer, image, and a heatmap per kind of noise and layer.

    Every heatmap has the colours of its own range. A frame marks the object asked about.

    Args:
        ax: where to draw.
        measured: with the tables "heat" and "samples" of `heat_gallery.gallery`, and the images.
        style: the look.
        words: width of the text, where an image is 1 wide.
        size: of the text, in points.
    """
    heat, samples = measured.tables["heat"], measured.tables["samples"]
    layers = heat_layers(heat)
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.set_xlim(-words, _column(len(NAMES), 0, len(layers)) - GAP)
    ax.set_ylim(len(samples) * STEP, -0.75)
    ax.set_autoscale_on(False)
    for block, (noise, told) in enumerate(NAMES.items()):
        start = _column(block, 0, len(layers))
        ax.text(start, -0.42, told, fontsize=8.5, fontweight="bold")
        for i, layer in enumerate(layers):
            at = _column(block, i, len(layers))
            ax.text(at + 0.5, -0.08, f"layer {layer}", fontsize=7.5, ha="center")
            for row, sample in enumerate(samples.to_dict("records")):
                pixels = measured.images[str(sample["example"])]
                cells = heat_of(heat, str(sample["example"]), noise, layer)
                _lay(ax, cells, _moved(_unit(sample, "grid_", pixels), at, row), style.heat)
                _frame(ax, _moved(_unit(sample, "", pixels), at, row), style)
    for row, sample in enumerate(samples.to_dict("records")):
        pixels = measured.images[str(sample["example"])]
        height, width = (np.asarray(pixels.shape[:2]) / max(pixels.shape[:2])).tolist()
        _lay(ax, pixels, _moved((0.0, 0.0, width, height), 0.0, row), None)
        _frame(ax, _moved(_unit(sample, "", pixels), 0.0, row), style)
        ax.text(-0.08, row * STEP + 0.5, question(sample, round(words * 10)), fontsize=size,
                ha="right", va="center")  # fmt: skip


def heat_of(
    heat: pd.DataFrame, example: str, noise: str, layer: int
) -> Float[np.ndarray, "row col"]:
    """The cells of one heatmap."""
    rows = where(heat, example=example, noise=noise)
    row, col = integers(rows, "row"), integers(rows, "col")
    cells = np.full((row.max() + 1, col.max() + 1), np.nan)
    cells[row, col] = numbers(rows, str(layer))
    return cells


def heat_layers(heat: pd.DataFrame) -> list[int]:
    """The layers of the table "heat"."""
    return [int(name) for name in heat.columns if str(name).isdigit()]


def question(sample: Mapping[str, Any], width: int) -> str:
    """A sample's name, question and answer in lines of a width."""
    prompt = str(sample["prompt"]).removesuffix(" The answer is:")
    lines = textwrap.wrap(f"{sample['example']}: {prompt} {sample['answer']!r}", width)
    return "\n".join(lines)


def hits(measured: Measured, noise: str, layers: Sequence[int]) -> str:
    """How often heatmaps of some layers are hottest on the object, with the interval."""
    share, low, high, n = hit_rate(measured, noise, layers)
    return f"{share:.2f} [{low:.2f}, {high:.2f}], n = {n}"


def hit_rate(
    measured: Measured, noise: str, layers: Sequence[int]
) -> tuple[float, float, float, int]:
    """The share of heatmaps whose hottest cell is on the object; 95 % interval, n questions."""
    found = per_example(measured, noise, layers)
    mean, low, high = mean_interval(found, seed=measured.about["seed"])
    return float(mean), float(low), float(high), len(found)


def per_example(
    measured: Measured, column: str, layers: Sequence[int]
) -> Float[np.ndarray, " example"]:
    """The mean over some layers of a column of the table "pointing", in the order of examples."""
    return by_layer(measured.tables["pointing"], column)[:, list(layers)].mean(1)


def hottest_in_words(measured: Measured, noise: str) -> str:
    """Where each sample's heatmaps are hottest, and where the object asked about is."""
    heat = measured.tables["heat"]
    said = []
    for sample in measured.tables["samples"].to_dict("records"):
        places = []
        for layer in heat_layers(heat):
            cells = heat_of(heat, str(sample["example"]), noise, layer)
            row, col = np.unravel_index(int(np.nanargmax(cells)), cells.shape)
            places.append(f"layer {layer} row {row + 1} column {col + 1}")
        said.append(f"{sample['example']} ({sample['prompt']}): {', '.join(places)}")
    return "; ".join(said)


def _column(block: int, i: int, num_layers: int) -> float:
    """The left edge of a column; the image is at 0."""
    return (1 + block * num_layers + i) * STEP + (block + 1) * GAP


def _unit(sample: Mapping[str, Any], prefix: str, pixels: np.ndarray) -> Box:
    """A box in parts of the image's longer side."""
    left, top, right, bottom = (
        float(sample[f"{prefix}{side}"]) / max(pixels.shape[:2]) for side in SIDES
    )
    return left, top, right, bottom


def _moved(box: Box, x: float, row: int) -> Box:
    left, top, right, bottom = box
    return left + x, top + row * STEP, right + x, bottom + row * STEP


def _lay(ax: "Axes", values: np.ndarray, box: Box, colors: str | None) -> None:
    left, top, right, bottom = box
    ax.imshow(values, cmap=colors, interpolation="nearest", extent=(left, right, bottom, top))


def _frame(ax: "Axes", box: Box, style: Style) -> None:
    """A dashed frame, where there is a box."""
    left, top, right, bottom = box
    if np.isfinite(left):
        around = ([left, right, right, left, left], [top, top, bottom, bottom, top])
        ax.plot(*around, "-", color="white", linewidth=1.2)
        ax.plot(*around, "--", color=style.colors["bad"], linewidth=0.8)
