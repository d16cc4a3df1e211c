"""Heatmaps for a page: an image, and for every layer the cells that lie over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from attrib import plots
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.report.demo_study import small_png
from attrib.report.run_reader import RunRead

NO_PLACE = -1


@dataclass(frozen=True)
class LayerCells:
    """One layer's heat: a picture with a pixel a cell, where it is hottest, and its ends."""

    layer: int
    png: bytes
    said: str
    low: float
    high: float


@dataclass(frozen=True)
class HeatPicture:
    """One sample's heatmaps.

    Attributes:
        example: its name.
        prompt: what was asked.
        image: PNG.
        width: of the image, as the boxes count it.
        height: of the image.
        box: left, top, right and bottom of the cells, in pixels of the image; None where the
            visual tokens lie on no grid: the cells are a row then, in reading order.
        cells: per layer.
        through: whether queries' heat was handed on to patches (Q-Former).
    """

    example: str
    prompt: str
    image: bytes
    width: float
    height: float
    box: tuple[float, float, float, float] | None
    cells: Sequence[LayerCells]
    through: bool = False

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of what image and cells fill together."""
        left, top, right, bottom = self.box or (0.0, 0.0, self.width, self.height)
        left, top = min(0.0, left), min(0.0, top)
        return left, top, max(self.width, right) - left, max(self.height, bottom) - top


def heat_pictures_of(
    run: RunRead, samples: Mapping[str, EditSample], number: int
) -> list[HeatPicture]:
    """The heatmaps of the first samples whose images can be read, from a run's tables."""
    if "grids" not in run.tables:
        return []
    grids = run.tables["grids"].frame.set_index("example")
    through = "picture" in run.tables
    frame = (run.tables["picture"] if through else run.result).frame
    found: list[HeatPicture] = []
    for example in map(str, grids.index):
        image = _image(samples.get(example))
        if image is not None and len(found) < number:
            table = pd.DataFrame(frame[frame["example"] == example])
            prompt = samples[example].request.prompt
            found.append(_picture(example, prompt, image, table, grids.loc[example], through))
    return found


def _image(sample: EditSample | None) -> Image.Image | None:
    try:
        return None if sample is None else sample.request.image
    except (AttribError, OSError):  # it was there when the run was made
        return None


def _picture(
    example: str, prompt: str, image: Image.Image, table: pd.DataFrame, grid: Any, through: bool
) -> HeatPicture:
    rows, cols = int(grid["rows"]), int(grid["cols"])
    on_grid = rows > 0
    placed = table[table["row"] > NO_PLACE] if on_grid else table
    cells = []
    for layer, part in placed.groupby("layer"):
        heat = np.asarray(part["value"], float).reshape((rows, cols) if on_grid else (1, -1))
        png = plots.heatmap_png(heat)
        cells.append(LayerCells(int(np.asarray(layer)), png, _hottest(heat), *_ends(heat)))
    box = tuple(float(grid[side]) for side in ("left", "top", "right", "bottom"))
    left, top, right, bottom = box
    return HeatPicture(
        example, prompt, small_png(image), float(image.width), float(image.height),
        (left, top, right, bottom) if on_grid else None, cells, through,
    )  # fmt: skip


def _hottest(heat: Float[np.ndarray, "row col"]) -> str:
    if not np.isfinite(heat).any():
        return "no value"
    row, col = np.unravel_index(int(np.nanargmax(heat)), heat.shape)
    place = f"row {row + 1}, column {col + 1}" if heat.shape[0] > 1 else f"token {col + 1}"
    return f"hottest at {place} ({np.nanmax(heat):.2g})"


def _ends(heat: Float[np.ndarray, "row col"]) -> tuple[float, float]:
    known = heat[np.isfinite(heat)]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
