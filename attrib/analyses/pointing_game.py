"""Does a map over an image point at an object: the pointing game, and ROC-AUC over patches.

The pointing game (Zhang et al. 2016) asks whether the hottest cell lies on the object; the AUC
whether cells on the object are hotter than the others, cell by cell.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from attrib.model.batch import Grid

COVERED = 0.1  # share of a cell that an object must cover, or of a smaller object that is in it


class Pointing(NamedTuple):
    """How well maps point at one object among others; NaN where a question has no answer.

    Attributes:
        hit: 1 where the hottest cell is on the object; cells that are equally hot share it.
        chance: what `hit` is on average for maps that do not know the object: its share of cells.
        auc: probability that a cell on the object is hotter than one off it; 0.5 by chance.
        auc_objects: the same against the cells of other objects alone: whether the map knows this
            object from others, not just objects from background.
    """

    hit: Float[np.ndarray, " map"]
    chance: float
    auc: Float[np.ndarray, " map"]
    auc_objects: Float[np.ndarray, " map"]


def point(
    maps: Float[np.ndarray, "map cell"],
    on: Bool[np.ndarray, "object cell"],
    asked: int,
) -> Pointing:
    """How well maps point at one of several objects.

    Args:
        maps: values of all cells of a grid, per map.
        on: which cells each object covers.
        asked: which object the maps should point at.
    """
    mine, others = on[asked], on.any(0) & ~on[asked]
    if not mine.any():
        nothing = np.full(len(maps), np.nan)
        return Pointing(nothing, float("nan"), nothing, nothing)
    hottest = maps == maps.max(-1, keepdims=True)
    # A broken map is equal to nothing, its own maximum included.
    with np.errstate(invalid="ignore"):
        hit = (hottest & mine).sum(-1) / hottest.sum(-1)
    return Pointing(hit, float(mine.mean()), _auc(maps, mine, ~mine), _auc(maps, mine, others))


def on_cells(
    masks: Bool[np.ndarray, "object height width"], grid: Grid
) -> Bool[np.ndarray, "object cell"]:
    """Which cells of a grid each object covers: a tenth of the cell, or the cell a tenth of it.

    Pixels that the grid leaves out (a processor's crop) count for nothing, and so do parts of a
    cell beyond the image (a processor's padding).
    """
    rows = _cell_of_pixel(masks.shape[1], grid.box[1], grid.box[3], grid.rows)
    cols = _cell_of_pixel(masks.shape[2], grid.box[0], grid.box[2], grid.cols)
    covered, size = np.zeros((2, len(masks), grid.rows, grid.cols))
    inside = np.ix_(np.arange(len(masks)), np.flatnonzero(rows >= 0), np.flatnonzero(cols >= 0))
    row, col = np.meshgrid(rows[rows >= 0], cols[cols >= 0], indexing="ij")
    for one, all_of, mask in zip(covered, size, masks[inside], strict=True):
        np.add.at(one, (row, col), mask)
        np.add.at(all_of, (row, col), 1)
    whole = np.broadcast_to(masks.sum((1, 2))[:, None, None], size.shape)
    enough = COVERED * np.minimum(size, whole)
    return (covered >= np.maximum(enough, 1)).reshape(len(masks), -1)


def _cell_of_pixel(pixels: int, start: float, stop: float, cells: int) -> np.ndarray:
    """Which of the cells between `start` and `stop` a pixel's centre is in; -1 for none."""
    cell = np.floor((np.arange(pixels) + 0.5 - start) / (stop - start) * cells).astype(int)
    return np.where((cell >= 0) & (cell < cells), cell, -1)


def _auc(
    maps: Float[np.ndarray, "map cell"],
    positive: Bool[np.ndarray, " cell"],
    negative: Bool[np.ndarray, " cell"],
) -> Float[np.ndarray, " map"]:
    """Probability that a positive cell is hotter than a negative one, half where they are equal."""
    if not negative.any():
        return np.full(len(maps), np.nan)
    high, low = maps[:, positive, None], maps[:, None, negative]
    won = (high > low) + 0.5 * (high == low)
    return np.where(np.isfinite(maps).all(-1), won.mean((1, 2)), np.nan)
