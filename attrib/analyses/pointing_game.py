"""Do heatmaps point at the object asked about, and do simpler maps? Pointing game and ROC-AUC.

The pointing game (Zhang et al. 2016) asks whether the cell with the largest value lies on the
object; the AUC whether cells on the object have larger values than the others.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from attrib.analyses.heatmaps import Perturbation
from attrib.analyses.qformer import pictures_of
from attrib.analyses.saliency import mean_map, saliency_maps
from attrib.analyses.visual_tokens import require_images
from attrib.data import EditSample
from attrib.data.scenes.ground_truth import GroundTruth
from attrib.errors import AttribError
from attrib.model.batch import Batch, Grid
from attrib.model.vlm import VLM
from attrib.runs.collected import Tables
from attrib.stats import auc

COVERED = 0.1  # share of a cell that an object must cover, or of a smaller object inside it
STATISTICS = ("hit", "chance", "auc", "auc_objects")
COLUMNS = ("example", "layer", "method", "statistic", "value", "kind", "right")


class Pointing(NamedTuple):
    """How well maps point at one object among others; NaN where a statistic is undefined.

    Attributes:
        hit: 1 where the largest cell is on the object; tied cells share it.
        chance: Expected `hit` of a random map: the object's share of cells.
        auc: Probability that a cell on the object is larger than one off it; 0.5 by chance.
        auc_objects: The same against cells of other objects only: whether the map separates this
            object from others, not just objects from background.
    """

    hit: Float[np.ndarray, " map"]
    chance: float
    auc: Float[np.ndarray, " map"]
    auc_objects: Float[np.ndarray, " map"]


def point(
    maps: Float[np.ndarray, "map cell"],
    on: Bool[np.ndarray, "object cell"],
    target_object: int,
) -> Pointing:
    """How well maps point at one of several objects.

    Args:
        maps: Values of all cells of a grid, per map.
        on: Which cells each object covers.
        target_object: Index of the object that the maps should point at.
    """
    target, others = on[target_object], on.any(0) & ~on[target_object]
    if not target.any():
        undefined = np.full(len(maps), np.nan)
        return Pointing(undefined, float("nan"), undefined, undefined)
    largest = maps == maps.max(-1, keepdims=True)
    # A map with NaN equals nothing, including its own maximum.
    with np.errstate(invalid="ignore"):
        hit = (largest & target).sum(-1) / largest.sum(-1)
    share = float(target.mean())
    return Pointing(hit, share, _aucs(maps, target, ~target), _aucs(maps, target, others))


def _aucs(
    maps: Float[np.ndarray, "map cell"],
    positive: Bool[np.ndarray, " cell"],
    negative: Bool[np.ndarray, " cell"],
) -> Float[np.ndarray, " map"]:
    """ROC-AUC of each map; NaN for a map that is not finite."""
    values = [
        auc(one[positive], one[negative]) if np.isfinite(one).all() else np.nan for one in maps
    ]
    return np.array(values, dtype=float)


def masks_to_grid(
    masks: Bool[np.ndarray, "object height width"], grid: Grid
) -> Bool[np.ndarray, "object cell"]:
    """Which cells each object covers: a tenth of the cell, or a tenth of the object is in it.

    Pixels outside the grid (a processor's crop) and parts of a cell outside the image (a
    processor's padding) are ignored.
    """
    rows = _cell_of_pixel(masks.shape[1], grid.box[1], grid.box[3], grid.rows)
    cols = _cell_of_pixel(masks.shape[2], grid.box[0], grid.box[2], grid.cols)
    covered, size = np.zeros((2, len(masks), grid.rows, grid.cols))
    inside = np.ix_(np.arange(len(masks)), np.flatnonzero(rows >= 0), np.flatnonzero(cols >= 0))
    row, col = np.meshgrid(rows[rows >= 0], cols[cols >= 0], indexing="ij")
    for count, total, mask in zip(covered, size, masks[inside], strict=True):
        np.add.at(count, (row, col), mask)
        np.add.at(total, (row, col), 1)
    whole = np.broadcast_to(masks.sum((1, 2))[:, None, None], size.shape)
    enough = COVERED * np.minimum(size, whole)
    return (covered >= np.maximum(enough, 1)).reshape(len(masks), -1)


def _cell_of_pixel(pixels: int, start: float, stop: float, cells: int) -> np.ndarray:
    """The cell between `start` and `stop` that contains each pixel's centre; -1 for none."""
    cell = np.floor((np.arange(pixels) + 0.5 - start) / (stop - start) * cells).astype(int)
    return np.where((cell >= 0) & (cell < cells), cell, -1)


def measure_faithfulness(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    truths: Mapping[str, GroundTruth],
    how: Mapping[str, Perturbation],
) -> Tables:
    """Table "faithfulness": how well each layer's maps point at the object asked about.

    And "all_layers", without the column `layer`: the same for the mean of a method's maps over all
    layers, each scaled to the same sum.

    Columns: example, layer, method, statistic (see `Pointing`), value, kind of question, and
    whether the next token is right. Methods are the names in `how`, "attention" (mean over heads,
    from the last prompt token) and "gradient" (times input, absolute value). With a Q-Former, its
    cross-attention projects all of them from queries to patches. Questions about no single object
    have no rows.

    Args:
        vlm: The model.
        batch: The samples' requests.
        samples: The samples.
        truths: Ground truth by sample id.
        how: Settings of heatmaps by name.

    Raises:
        AttribError: A sample has no image, or its visual tokens have no place in it.
    """
    require_images(batch)
    maps, predicted = saliency_maps(vlm, batch, how)
    answers = [vlm.answer_token(truths[sample.id].answer) for sample in samples]
    pictures = pictures_of(vlm, batch, samples)
    parts: list[pd.DataFrame] = []
    over_layers: list[pd.DataFrame] = []
    for i, sample in enumerate(samples):
        truth, grids = truths[sample.id], [picture.grid for picture in pictures[i]]
        if (target := truth.target_object()) is None:
            continue
        if len(grids) > 1 or (grid := grids[0]) is None:
            raise AttribError("the visual tokens have no place in one image: nothing can point")
        on = masks_to_grid(truth.masks(), grid)
        for method, values in maps.items():
            columns = {"example": sample.id, "method": method, "kind": truth.question.kind,
                       "right": predicted[i] == answers[i]}  # fmt: skip
            cells = values[i][:, grid.first : grid.first + grid.rows * grid.cols]
            parts.append(_scores(cells, on, target).assign(**columns))
            over_layers.append(_scores(mean_map(cells), on, target).assign(**columns))
    all_layers = _concat(over_layers).drop(columns="layer")
    return {"faithfulness": _concat(parts), "all_layers": all_layers}


def _scores(
    maps: Float[np.ndarray, "layer cell"], on: Bool[np.ndarray, "object cell"], target: int
) -> pd.DataFrame:
    """Rows of one example and method: layer, statistic and value."""
    pointing = point(maps, on, target)
    values = np.stack([np.broadcast_to(part, len(maps)) for part in pointing], axis=1)
    layers, statistics = np.indices(values.shape)
    names = np.asarray(STATISTICS, object)[statistics.ravel()]
    return pd.DataFrame({"layer": layers.ravel(), "statistic": names, "value": values.ravel()})


def _concat(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; without any, an empty one with the same columns and dtypes."""
    row = ("", 0, "", "", 0.0, "", False)
    empty = pd.DataFrame([row], columns=pd.Index(COLUMNS)).iloc[:0]
    full = pd.concat(parts, ignore_index=True) if parts else empty
    return pd.DataFrame(full, columns=list(COLUMNS))
