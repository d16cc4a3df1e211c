"""Does a map over an image point at an object: the pointing game, and ROC-AUC over patches.

The pointing game (Zhang et al. 2016) asks whether the hottest cell lies on the object; the AUC
whether cells on the object are hotter than the others, cell by cell.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.analyses.attention import head_mean
from attrib.analyses.gradients import gradient_times_input
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.qformer import grids_of, patch_attention_if_any, project
from attrib.analyses.visual_tokens import VisualTokens, refuse_text_alone
from attrib.data import EditSample
from attrib.data.scenes.ground_truth import GroundTruth
from attrib.errors import AttribError
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import gather_positions
from attrib.model.batch import Batch, Grid
from attrib.model.vlm import VLM
from attrib.runs.collect import Tables

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


def masks_to_grid(
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


STATISTICS = ("hit", "chance", "auc", "auc_objects")
ATTENTION, GRADIENT = "attention", "gradient"
COLUMNS = ("example", "layer", "method", "statistic", "value", "kind", "right")


def measure_faithfulness(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    truths: Mapping[str, GroundTruth],
    how: Mapping[str, Perturbation],
) -> Tables:
    """The table "faithfulness": how well each layer's maps point at the object asked about.

    And "all_layers", the same without a column `layer`: of the mean of a method's maps over all
    layers, each scaled to the same sum.

    Columns: example, layer, method, statistic ("hit", "chance", "auc", "auc_objects"; see
    `attrib.analyses.pointing_game.Pointing`), value, kind of question, and whether the next token
    is right. Methods are the names in `how`, "attention" (mean over heads, from the last prompt
    token) and "gradient" (times input, its size). With a Q-Former, all of them are handed on from
    queries to patches by its cross-attention. Questions about no single object have no rows.

    Args:
        vlm: the model.
        batch: the samples' requests.
        samples: what was asked.
        truths: by the samples' ids.
        how: heatmaps by name.

    Raises:
        AttribError: a sample has no image, or its visual tokens no place in it.
    """
    refuse_text_alone(batch)
    maps, right = _maps(vlm, batch, samples, truths, how)
    grids = grids_of(vlm, batch, samples)
    parts: list[pd.DataFrame] = []
    over_layers: list[pd.DataFrame] = []
    for i, sample in enumerate(samples):
        truth, grid = truths[sample.id], grids[i]
        if (asked := truth.target_object()) is None:
            continue
        if grid is None:
            raise AttribError("the visual tokens have no place in the image: nothing can point")
        on = masks_to_grid(truth.masks(), grid)
        for method, values in maps.items():
            named = {"example": sample.id, "method": method, "kind": truth.question.kind,
                     "right": right[i]}  # fmt: skip
            cells = values[i][:, grid.first : grid.first + grid.rows * grid.cols]
            parts.append(_scores(cells, on, asked).assign(**named))
            over_layers.append(_scores(_mean_map(cells), on, asked).assign(**named))
    both = {"faithfulness": _joined(parts), "all_layers": _joined(over_layers)}
    return both | {"all_layers": both["all_layers"].drop(columns="layer")}


def _maps(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    truths: Mapping[str, GroundTruth],
    how: Mapping[str, Perturbation],
) -> tuple[dict[str, Float[np.ndarray, "batch layer cell"]], list[bool]]:
    """Every method's maps over visual tokens or patches; and whether the model is right."""
    tokens, layers = VisualTokens.of(batch), range(vlm.num_layers)
    found: dict[str, Tensor] = {}
    with patch_attention_if_any(vlm) as seen, attention_rows(vlm, tokens.last) as rows:
        logits = vlm.logits(batch)
    said = gather_positions(logits, tokens.last).argmax(-1).tolist()
    for name, perturbation in how.items():
        with heatmap_pass(vlm, batch, layers, perturbation) as maps:
            vlm.logits(batch)
        found[name] = stack_maps(maps, layers, batch)
    found[ATTENTION] = _at_tokens(head_mean(vlm, rows), tokens)
    found[GRADIENT] = gradient_times_input(vlm, batch).abs()
    if seen:
        found = {name: project(values, seen[-1], batch) for name, values in found.items()}
    answers = [vlm.answer_token(truths[sample.id].answer) for sample in samples]
    right = [a == b for a, b in zip(said, answers, strict=True)]
    return {name: values.double().cpu().numpy() for name, values in found.items()}, right


def _at_tokens(rows: Float[Tensor, "batch layer pos"], tokens: VisualTokens) -> Tensor:
    values = tokens.gather(rows.transpose(1, 2)).transpose(1, 2)
    return values.masked_fill(~tokens.real[:, None].to(values.device), float("nan"))


def _mean_map(maps: Float[np.ndarray, "layer cell"]) -> Float[np.ndarray, "one cell"]:
    """The mean over layers of maps that are scaled to the same sum."""
    sums = maps.sum(-1, keepdims=True)
    usable = np.isfinite(sums[:, 0]) & (sums[:, 0] > 0)
    if not usable.any():
        return maps[:1] * 0
    return (maps[usable] / sums[usable]).mean(0, keepdims=True)


def _scores(
    maps: Float[np.ndarray, "layer cell"], on: Bool[np.ndarray, "object cell"], asked: int
) -> pd.DataFrame:
    """Rows of one example and method: layer, statistic and value."""
    found = point(maps, on, asked)
    columns = np.stack([np.broadcast_to(part, len(maps)) for part in found], axis=1)
    layers, statistics = np.indices(columns.shape)
    return pd.DataFrame(
        {
            "layer": layers.ravel(),
            "statistic": np.asarray(STATISTICS, object)[statistics.ravel()],
            "value": columns.ravel(),
        }
    )


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; without any, one that has the same columns and no row."""
    row = ("", 0, "", "", 0.0, "", False)
    none = pd.DataFrame([row], columns=pd.Index(COLUMNS)).iloc[:0]
    full = pd.concat(parts, ignore_index=True) if parts else none
    return pd.DataFrame(full, columns=list(COLUMNS))
