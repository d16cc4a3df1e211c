"""How good a choice of layers was, judged by editors trained on a whole grid of layers.

A grid is a tidy table with the columns `text` and `visual` (layers; None where that modality is not
edited), `seed` and `score`. A kind of grid is the cells that edit the same modalities: both, text
alone, or visual alone; a pick is compared with its own kind.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from attrib.errors import AttribError
from attrib.selection.report import LayerReport
from attrib.selection.rules import MODALITIES
from attrib.stats import spearman

Pick = tuple[int | None, int | None]  # text layer, visual layer
NONE = -1
DEPTHS = (16 / 32, 19 / 32)  # DualEdit's text and visual layer, in models of 32 layers
SHOWN = 9
UNKNOWN = (
    "score", "best_text", "best_visual", "best", "regret", "low", "high", "seeds", "held_out",
)  # fmt: skip


class Cells(NamedTuple):
    """Cells of a grid that have a score for every seed."""

    layers: Int[np.ndarray, "cell 2"]  # text, visual; -1: not edited
    scores: Float[np.ndarray, "cell seed"]


def fixed_picks(num_layers: int) -> dict[str, Pick]:
    """What a user would copy: the middle layer, and the papers' layers 16 and 19 of 32 by depth."""
    last = max(0, num_layers - 2)  # the last one that is read
    text, visual = (min(last, round(depth * num_layers)) for depth in DEPTHS)
    middle = min(last, num_layers // 2)
    return {"middle layer": (middle, middle), "depths 16/32 and 19/32": (text, visual)}


def picks_of(report: LayerReport) -> dict[str, Pick]:
    """The text and visual layer of each rule that has both."""
    text, visual = (report.choices.get(modality, {}) for modality in MODALITIES)
    return {rule: (text[rule].layer, visual[rule].layer) for rule in text if rule in visual}


def regret(grid: pd.DataFrame, picks: Mapping[str, Pick]) -> pd.DataFrame:
    """The best cell minus the chosen one, per pick, in the units of the score.

    Args:
        grid: see above; cells that lack a seed which others have are passed over.
        picks: by name, such as those of `picks_of` and `fixed_picks`. A pick with None for a
            modality is compared with the cells that do not edit it.

    Returns:
        One row per pick, in order: pick, text, visual, score (mean over seeds), best_text,
        best_visual, best, regret; low and high, the smallest and largest difference of a seed;
        seeds; and held_out: the mean over seeds of the score of the cell that the other seeds call
        best, minus that of the pick. The best of many noisy cells is best by luck in part, which
        `held_out` leaves out (NaN with one seed). A pick whose cell the grid lacks has NaN for a
        score and a regret.

    Raises:
        AttribError: columns are missing, or the grid has a complete cell for none of the picks.
    """
    cells = _cells(grid)
    found = {name: _judged(cells, pick) for name, pick in picks.items()}
    if found and all(np.isnan(row["score"]) for row in found.values()):
        raise AttribError(_no_cell(cells, *dict.fromkeys(picks.values())))
    return pd.DataFrame([{"pick": name, **row} for name, row in found.items()])


def rank_correlations(grid: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation over layers between each evidence and the grid.

    Args:
        grid: see above. A layer's score is the mean over its cells: those that edit this modality
            alone, and where there are none, all pairs with it.
        scores: columns modality, evidence, layer and value, as `LayerReport.scores` gives them.

    Returns:
        Columns modality, evidence, correlation (with the mean over seeds), low and high (the
        smallest and largest of a seed) and layers (how many are compared), best first.
        NaN where one of the two is the same everywhere, or where fewer than three layers are left.
    """
    cells = _cells(grid)
    rows = []
    for modality in MODALITIES:
        layers, margin = layer_scores(cells, modality)
        mine = scores.loc[scores["modality"] == modality]
        for evidence in dict.fromkeys(mine["evidence"]):
            part = mine.loc[mine["evidence"] == evidence]
            rows.append({"modality": modality, "evidence": evidence,
                         **_correlated(part, layers, margin)})  # fmt: skip
    columns = ["modality", "evidence", "correlation", "low", "high", "layers"]
    table = pd.DataFrame(rows, columns=columns)
    order = ["modality", "correlation"]
    return table.sort_values(order, ascending=[True, False], kind="stable", ignore_index=True)


def layer_scores(
    cells: Cells, modality: str
) -> tuple[Int[np.ndarray, " layer"], Float[np.ndarray, "layer seed"]]:
    """The layers at which a modality is edited, and the mean score of each by seed."""
    own, other = (0, 1) if modality == MODALITIES[0] else (1, 0)
    edited = cells.layers[:, own] != NONE
    alone = edited & (cells.layers[:, other] == NONE)
    kept = alone if alone.any() else edited
    at, scores = cells.layers[kept, own], cells.scores[kept]
    layers = np.unique(at)
    means = [scores[at == layer].mean(0) for layer in layers]
    return layers, np.stack(means) if means else scores


def _correlated(
    part: pd.DataFrame,
    layers: Int[np.ndarray, " layer"],
    margin: Float[np.ndarray, "layer seed"],
) -> dict[str, Any]:
    scored = dict(zip(part["layer"], np.asarray(part["value"], float), strict=True))
    both = [i for i, layer in enumerate(layers.tolist()) if layer in scored]
    value = np.array([scored[layers[i]] for i in both], float)
    each = [spearman(value, margin[both, seed]) for seed in range(margin.shape[1])]
    return {
        "correlation": spearman(value, margin[both].mean(1)),
        "low": min(each), "high": max(each), "layers": len(both),
    }  # fmt: skip


def _cells(grid: pd.DataFrame) -> Cells:
    if missing := {"text", "visual", "seed", "score"} - set(grid.columns):
        raise AttribError(
            f"a grid has the columns text, visual, seed and score; {', '.join(sorted(missing))} "
            "is missing"
        )
    plain = {m: np.nan_to_num(grid[m].to_numpy(float), nan=NONE).astype(int) for m in MODALITIES}
    wide = grid.assign(**plain).pivot_table("score", list(MODALITIES), "seed", aggfunc="mean")
    whole = wide.dropna()
    if whole.empty:
        raise AttribError("no cell of the grid has a score for every seed")
    layers = np.array([list(cell) for cell in whole.index], int)
    return Cells(layers, whole.to_numpy(float))


def _judged(cells: Cells, pick: Pick) -> dict[str, Any]:
    wanted = np.array([NONE if layer is None else layer for layer in pick])
    same_kind = ((cells.layers == NONE) == (wanted == NONE)).all(1)
    layers, scores = cells.layers[same_kind], cells.scores[same_kind]
    found = (layers == wanted).all(1)
    if not found.any():
        return {"text": pick[0], "visual": pick[1]} | dict.fromkeys(UNKNOWN, float("nan"))
    own, means = scores[found][0], scores.mean(1)
    best = int(means.argmax())
    ahead = scores[best] - own
    best_text, best_visual = _pick(layers[best])
    return {
        "text": pick[0], "visual": pick[1], "score": float(own.mean()),
        "best_text": best_text, "best_visual": best_visual, "best": float(means[best]),
        "regret": float(ahead.mean()), "low": float(ahead.min()), "high": float(ahead.max()),
        "seeds": len(own), "held_out": _held_out(scores, own),
    }  # fmt: skip


def _no_cell(cells: Cells, *picks: Pick) -> str:
    kinds = {tuple(layer is None for layer in pick) for pick in picks}
    there = [str(_pick(cell)) for cell in cells.layers if tuple(cell == NONE) in kinds]
    shown = ", ".join(there[:SHOWN]) + (" ..." if len(there) > SHOWN else "")
    wanted = ", ".join(map(str, picks))
    return (
        f"the grid has no complete cell (text, visual) {wanted}; of its kind it has "
        f"{shown or 'no cell'}"
    )


def _held_out(scores: Float[np.ndarray, "cell seed"], own: Float[np.ndarray, " seed"]) -> float:
    num_seeds = len(own)
    if num_seeds < 2:
        return float("nan")
    others = (scores.sum(1, keepdims=True) - scores) / (num_seeds - 1)
    return float(np.mean(scores[others.argmax(0), np.arange(num_seeds)] - own))


def _pick(cell: Int[np.ndarray, "2"]) -> Pick:
    text, visual = (None if layer == NONE else int(layer) for layer in cell)
    return text, visual
