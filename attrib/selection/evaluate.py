"""Regret of a choice of layers, measured on editors trained on a grid of layers.

A grid is a tidy table with the columns `text` and `visual` (edited layers; None where a modality is
not edited), `seed` and `score`. Its cells are of three kinds: both modalities edited, text alone,
visual alone. A pick is compared with the cells of its kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from attrib.errors import AttribError
from attrib.selection.report import LayerReport
from attrib.stats import spearman
from attrib.vocabulary import MODALITIES

Pick = tuple[int | None, int | None]  # text layer, visual layer
NONE = -1
RANDOM = "random cell"
DEPTHS = (16 / 32, 19 / 32)  # DualEdit's text and visual layer, in models of 32 layers
SHOWN = 9
# By kind: which of the text and the visual layer the cells edit.
KINDS = {"both": (True, True), "text alone": (True, False), "visual alone": (False, True)}
UNKNOWN = (
    "score", "best_text", "best_visual", "best", "regret", "low", "high", "seeds", "held_out",
)  # fmt: skip


class Cells(NamedTuple):
    """The cells of a grid that have a score for every seed."""

    layers: Int[np.ndarray, "cell 2"]  # text, visual; -1: not edited
    scores: Float[np.ndarray, "cell seed"]


class GridEvaluation(NamedTuple):
    """The choices of a layer report on a grid of trained editors.

    Attributes:
        regret: per kind of cells, the table of `regret`; kinds that the grid lacks are left out.
        correlations: from `rank_correlations`: which evidence predicts the grid.
        cells: number of different cells, per kind.
    """

    regret: Mapping[str, pd.DataFrame]
    correlations: pd.DataFrame
    cells: Mapping[str, int]


def evaluate_on_grid(grid: pd.DataFrame, report: LayerReport) -> GridEvaluation:
    """Regret of every rule, of the fixed choices and of a random cell, per kind of cells.

    Raises:
        AttribError: Columns are missing, or the grid has a cell for none of the picks.
    """
    fixed = fixed_picks(report.num_layers)
    picks: dict[str, dict[str, Pick]] = {"both": picks_of(report) | fixed}
    for side, modality in enumerate(MODALITIES):
        layers = {rule: choice.layer for rule, choice in report.choices[modality].items()}
        layers |= {name: pick[side] for name, pick in fixed.items()}
        picks[f"{modality} alone"] = {
            name: (None, layer) if side else (layer, None) for name, layer in layers.items()
        }
    tables, errors = {}, []
    for kind, named in picks.items():
        try:
            tables[kind] = _with_random(regret(grid, named), grid, kind)
        except AttribError as error:
            errors.append(error)
    if not tables:
        raise errors[0]
    edited = grid.drop_duplicates(list(MODALITIES))[list(MODALITIES)].notna().to_numpy()
    cells = {kind: int((edited == sides).all(1).sum()) for kind, sides in KINDS.items()}
    return GridEvaluation(tables, rank_correlations(grid, report.scores()), cells)


def fixed_picks(num_layers: int) -> dict[str, Pick]:
    """Layers without analysis: the middle, the papers' 16 and 19 of 32 by depth, the first two."""
    last = max(0, num_layers - 2)  # the last layer whose output is read
    text, visual = (min(last, round(depth * num_layers)) for depth in DEPTHS)
    middle = min(last, num_layers // 2)
    second = min(last, 1)
    return {
        "middle layer": (middle, middle), "depths 16/32 and 19/32": (text, visual),
        "first layer": (0, 0), "layer 1": (second, second),
    }  # fmt: skip


def picks_of(report: LayerReport) -> dict[str, Pick]:
    """The text and visual layer of each rule that has both."""
    text, visual = (report.choices.get(modality, {}) for modality in MODALITIES)
    return {rule: (text[rule].layer, visual[rule].layer) for rule in text if rule in visual}


def regret(grid: pd.DataFrame, picks: Mapping[str, Pick]) -> pd.DataFrame:
    """Score of the best cell minus that of the picked one, in the units of the score.

    Args:
        grid: see above; cells that lack a seed are ignored.
        picks: by name, such as those of `picks_of` and `fixed_picks`. A pick with None for a
            modality is compared with the cells that do not edit it.

    Returns:
        One row per pick, in order: pick, text, visual, score (mean over seeds), best_text,
        best_visual, best, regret; low and high, the smallest and largest regret of a seed; seeds;
        and held_out: the mean over seeds of the score of the cell that is best for the other seeds,
        minus that of the pick. The best of many noisy cells is best by luck in part; `held_out` is
        free of that (NaN with one seed). A pick whose cell the grid lacks has NaN.

    Raises:
        AttribError: Columns are missing, or the grid has a complete cell for none of the picks.
    """
    cells = _cells(grid)
    rows = {name: _regret_of(cells, pick) for name, pick in picks.items()}
    if rows and all(np.isnan(row["score"]) for row in rows.values()):
        raise AttribError(_no_cell(cells, *dict.fromkeys(picks.values())))
    return pd.DataFrame([{"pick": name, **row} for name, row in rows.items()])


def rank_correlations(grid: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation over layers between each evidence and the grid.

    Args:
        grid: see above. A layer's score is the mean over its cells: those that edit this modality
            alone, and where there are none, all pairs with it.
        scores: columns modality, evidence, layer and value, as in `LayerReport.scores`.

    Returns:
        Columns modality, evidence, correlation (with the mean over seeds), low and high (the
        smallest and largest of a seed) and layers (number of layers compared), best first. NaN
        without spread, or with fewer than three layers.
    """
    cells = _cells(grid)
    rows = []
    for modality in MODALITIES:
        layers, means = layer_scores(cells, modality)
        for evidence, part in scores[scores["modality"] == modality].groupby(
            "evidence", sort=False
        ):
            head = {"modality": modality, "evidence": evidence}
            rows.append(head | _correlation(pd.DataFrame(part), layers, means))
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


def _correlation(
    part: pd.DataFrame,
    layers: Int[np.ndarray, " layer"],
    means: Float[np.ndarray, "layer seed"],
) -> dict[str, Any]:
    value = part.set_index("layer")["value"].astype(float).reindex(layers).to_numpy()
    both = np.isin(layers, part["layer"])
    value, means = value[both], means[both]
    each = [spearman(value, one) for one in means.T]
    return {
        "correlation": spearman(value, means.mean(1)),
        "low": min(each), "high": max(each), "layers": len(value),
    }  # fmt: skip


def _cells(grid: pd.DataFrame) -> Cells:
    if missing := {"text", "visual", "seed", "score"} - set(grid.columns):
        raise AttribError(
            f"a grid has the columns text, visual, seed and score; {', '.join(sorted(missing))} "
            "is missing"
        )
    plain = {m: np.nan_to_num(grid[m].to_numpy(float), nan=NONE).astype(int) for m in MODALITIES}
    wide = grid.assign(**plain).pivot_table("score", list(MODALITIES), "seed", aggfunc="mean")
    complete = wide.dropna()
    if complete.empty:
        raise AttribError("no cell of the grid has a score for every seed")
    layers = np.array([list(cell) for cell in complete.index], int)
    return Cells(layers, complete.to_numpy(float))


def _regret_of(cells: Cells, pick: Pick) -> dict[str, Any]:
    wanted = np.array([NONE if layer is None else layer for layer in pick])
    same_kind = _of_kind(cells, wanted != NONE)
    if not (found := (same_kind.layers == wanted).all(1)).any():
        return {"text": pick[0], "visual": pick[1]} | dict.fromkeys(UNKNOWN, float("nan"))
    return _compared(same_kind, pick, same_kind.scores[found][0])


def _of_kind(cells: Cells, sides: Sequence[bool] | np.ndarray) -> Cells:
    """The cells that edit the text layer, the visual layer or both, as `sides` says."""
    same = ((cells.layers != NONE) == np.asarray(sides)).all(1)
    return Cells(cells.layers[same], cells.scores[same])


def _compared(cells: Cells, pick: Pick, own: Float[np.ndarray, " seed"]) -> dict[str, Any]:
    """A row of `regret`: the pick's scores by seed beside those of the best of the cells."""
    best = int((means := cells.scores.mean(1)).argmax())
    ahead = cells.scores[best] - own
    best_text, best_visual = _pick(cells.layers[best])
    return {
        "text": pick[0], "visual": pick[1], "score": float(own.mean()),
        "best_text": best_text, "best_visual": best_visual, "best": float(means[best]),
        "regret": float(ahead.mean()), "low": float(ahead.min()), "high": float(ahead.max()),
        "seeds": len(own), "held_out": _held_out(cells.scores, own),
    }  # fmt: skip


def _with_random(table: pd.DataFrame, grid: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Add the row of a cell drawn at random: it scores the mean over all cells of the kind."""
    cells = _of_kind(_cells(grid), KINDS[kind])
    row = {"pick": RANDOM, **_compared(cells, (None, None), cells.scores.mean(0))}
    layers = {m: pd.Series([*table[m], None], dtype=object) for m in MODALITIES}
    return pd.DataFrame([*table.to_dict("records"), row]).assign(**layers)


def _no_cell(cells: Cells, *picks: Pick) -> str:
    kinds = {tuple(layer is None for layer in pick) for pick in picks}
    there = [str(_pick(cell)) for cell in cells.layers if tuple(cell == NONE) in kinds]
    shown = ", ".join(there[:SHOWN]) + (" ..." if len(there) > SHOWN else "")
    return (
        f"the grid has no complete cell (text, visual) {', '.join(map(str, picks))}; of this kind "
        f"it has {shown or 'no cell'}"
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
