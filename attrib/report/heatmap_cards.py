"""Heatmaps for a page: an image, and for every layer the cells that lie over it."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from attrib import plots
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.plots.heatmaps import rows_of_image
from attrib.report.page import Table
from attrib.report.run_reader import RunRead

CARD_PIXELS = 320  # the longer side; larger images are scaled down
Box = tuple[float, float, float, float]


class LayerMap(NamedTuple):
    """The heatmap of one layer: a PNG of one pixel per cell, its highest cell, its range."""

    layer: int
    png: bytes
    peak: str
    low: float
    high: float


@dataclass(frozen=True)
class HeatmapCard:
    """The heatmaps of one image of a sample.

    Attributes:
        prompt: of the sample; with the number of the image where there are several, and the model's
            answer if it is known.
        image: PNG.
        width: of the original image, in pixels.
        height: of the original image.
        box: left, top, right and bottom of the cells in pixels of the original image; None where
            the visual tokens have no grid: the cells are then a row, in reading order.
        maps: one per layer.
    """

    prompt: str
    image: bytes
    width: float
    height: float
    box: Box | None
    maps: Sequence[LayerMap]

    @property
    def frame(self) -> Box:
        """Left, top, width and height of the area that image and cells cover together."""
        left, top, right, bottom = self.box or (0.0, 0.0, self.width, self.height)
        left, top = min(0.0, left), min(0.0, top)
        return left, top, max(self.width, right) - left, max(self.height, bottom) - top


class HeatmapViewer(NamedTuple):
    """Cards with a slider over the layers.

    Attributes:
        cards: one per image.
        layers: their numbers.
        names: of the layers.
        first: position of the layer that is shown at first.
        table: the place of the highest cell, per layer and card.
    """

    cards: Sequence[HeatmapCard]
    layers: Sequence[int]
    names: Sequence[str]
    first: int
    table: Table


def answers_of(runs: Iterable[RunRead]) -> dict[str, str]:
    """What the model said to each example and whether that is right, as contributions have it."""
    tables = [run.tables["answers"].frame for run in runs if "answers" in run.tables]
    rows = [row for table in tables if "answer" in table for row in table.to_dict("records")]
    return {
        str(row["example"]): f"The model says “{row['answer']}”: "
        + ("right." if row["value"] else f"“{row['truth']}” is right.")
        for row in rows
    }


def heatmap_cards(
    run: RunRead,
    samples: Mapping[str, EditSample],
    number: int,
    answers: Mapping[str, str] | None = None,
) -> list[HeatmapCard]:
    """Cards of the first `number` samples of a heatmap run whose images can be read."""
    if "grids" not in run.tables:
        return []
    grids, frame = run.tables["grids"].frame, run.tables.get("picture", run.result).frame
    found: list[list[HeatmapCard]] = []
    for example in dict.fromkeys(map(str, grids["example"])):
        images = _images(samples.get(example))
        if images and len(found) < number:
            prompt, of = samples[example].request.prompt, f"of {len(images)}"
            found.append([])
            for i, image in enumerate(images):
                table, grid = (rows_of_image(one, example, i) for one in (frame, grids))
                name = f"{prompt} (image {i + 1} {of})" if len(images) > 1 else prompt
                name = f"{name} {said}" if (said := (answers or {}).get(example)) else name
                found[-1].append(_card(name, image, table, grid.iloc[0]))
    return [card for cards in found for card in cards]


def heatmap_viewer(
    cards: Sequence[HeatmapCard], names: Mapping[int, str], chosen: Collection[int], shown: int
) -> HeatmapViewer:
    """Cards with a slider.

    Args:
        cards: of samples with the same layers.
        names: what to add to the names of some layers.
        chosen: layers to mark.
        shown: the layer that is shown at first, if there is a map of it.
    """
    layers = [one.layer for one in cards[0].maps]
    rows = [(layer, [card.maps[i].peak for card in cards]) for i, layer in enumerate(layers)]
    columns = [f"image {i + 1}" for i in range(len(cards))]
    labels = [f"Layer {layer}{names.get(layer, '')}" for layer in layers]
    table = Table("Highest cell", columns, rows, chosen=chosen)
    return HeatmapViewer(
        cards, layers, labels, layers.index(shown) if shown in layers else 0, table
    )


def small_png(image: Image.Image) -> bytes:
    """The image as PNG, scaled down if it is large."""
    small = image.copy()
    small.thumbnail((CARD_PIXELS, CARD_PIXELS))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _images(sample: EditSample | None) -> list[Image.Image]:
    try:
        return [] if sample is None else sample.request.images
    except (AttribError, OSError):  # removed since the run
        return []


def _card(prompt: str, image: Image.Image, table: pd.DataFrame, grid: Any) -> HeatmapCard:
    rows, cols = int(grid["rows"]), int(grid["cols"])
    cells = table[table["row"] >= 0] if rows else table
    maps = []
    for layer, part in cells.groupby("layer"):
        values = np.asarray(part["value"], float).reshape((rows, cols) if rows else (1, -1))
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        png = plots.heatmap_png(values)
        maps.append(LayerMap(int(np.asarray(layer)), png, _peak(values), low, high))
    left, top, right, bottom = (float(grid[s]) for s in ("left", "top", "right", "bottom"))
    width, height = map(float, image.size)
    box = (left, top, right, bottom) if rows else None
    return HeatmapCard(prompt, small_png(image), width, height, box, maps)


def _peak(values: Float[np.ndarray, "row col"]) -> str:
    if not np.isfinite(values).any():
        return "no value"
    row, col = np.unravel_index(int(np.nanargmax(values)), values.shape)
    place = f"row {row + 1}, column {col + 1}" if values.shape[0] > 1 else f"token {col + 1}"
    return f"highest at {place} ({np.nanmax(values):.2g})"
