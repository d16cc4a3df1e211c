"""How well one number tells inputs an edit must cover from inputs it must leave alone.

A gate opens where the number is at or above a threshold. It is judged by the ROC-AUC, the
probability that an input to cover has the larger number, ties counting half (Mann-Whitney), and at
the threshold where the share of inputs to cover that open it, minus that of the others, is largest
(Youden). That threshold is chosen on the very examples it is then judged by, so its rates are a
little better than those of new examples; the intervals tell how examples vary, not that.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from attrib.errors import AttribError
from attrib.results import Result
from attrib.stats import RESAMPLES

POSITIVE = ("text_generality", "visual_generality")
ANY = "any locality"  # all kinds of locality inputs together
PUBLISHED_THRESHOLD = 0.8  # DualEdit: of its program, and of its paper for BLIP-2 (LLaVA: 0.6)
DECIMALS = 6  # of similarities that are compared: beyond them, float32 rounds as it likes
DRAWS_AT_ONCE = 100


@dataclass(frozen=True, eq=False)
class Roc:
    """ROC-AUC, best threshold and its open rates, once per vector of weights.

    Attributes:
        auc: probability that a positive has the larger number.
        threshold: where a gate opens best, half way to the next smaller number.
        rates: shares of (positives, negatives) that open it, at the first vector's threshold.
    """

    auc: Float[np.ndarray, " draw"]
    threshold: Float[np.ndarray, " draw"]
    rates: Float[np.ndarray, "draw 2"]


def gate_roc(result: Result, *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """AUC and best threshold of a gate, per layer, token and kind of locality input.

    Positives are the generality inputs, negatives those of one `relation`, or of all of them
    (`ANY`). Intervals hold 95 % of bootstrap draws over examples; an example is drawn with all of
    its inputs. The threshold is chosen anew in each draw; the rates' intervals are those of the
    threshold chosen on all examples.

    Args:
        result: with the columns example, layer, token, relation, value; values that are not finite
            are left out (text alone has no visual tokens).
        resamples: number of bootstrap draws, seeded by the result.

    Returns:
        One row per layer, token and relation: `auc`, `threshold`, `true_open` and `false_open` (the
        shares of positives and negatives at or above it), `published_true_open` and
        `published_false_open` (at the threshold of 0.8), each of the first four with `_low` and
        `_high`; and `n`, the number of examples with a positive and a negative.

    Raises:
        AttribError: No value is finite.
    """
    frame = result.frame[np.isfinite(result.frame["value"])]
    example, ids = pd.factorize(frame["example"])
    frame = frame.assign(example=example, value=frame["value"].round(DECIMALS))
    if not (n := len(ids)):
        raise AttribError("no similarity to an edit is a number: there is nothing to tell apart")
    draws = np.random.default_rng(result.seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    weights = np.vstack([np.ones(n), draws]).T.astype(np.float32)
    rows = []
    for place, cell in frame.groupby(["layer", "token"], sort=True):
        layer, token = cast(tuple[int, str], place)
        for relation, both in _against(cell).items():
            head = {"layer": layer, "token": token, "relation": relation}
            rows.append(head | _row(both, weights))
    return pd.DataFrame(rows)


def best_layer(table: pd.DataFrame, token: str) -> int:
    """The layer where a token tells generality from all locality best, by its AUC.

    `table` is what `gate_roc` returns.

    Raises:
        AttribError: No layer has an AUC: generality or locality inputs are missing.
    """
    rows = overall(table, token)
    if not np.isfinite(rows["auc"]).any():
        raise AttribError(f"{token}: no example has both generality and locality inputs")
    return int(rows["layer"].loc[rows["auc"].idxmax()])


def overall(table: pd.DataFrame, token: str) -> pd.DataFrame:
    """The rows of a token against all locality together, a layer each."""
    return table.loc[(table["token"] == token) & (table["relation"] == ANY)]


def roc(
    value: Float[np.ndarray, " item"],
    positive: Bool[np.ndarray, " item"],
    weights: Float[np.ndarray, "item draw"],
) -> Roc:
    """AUC, threshold and open rates of weighted items; NaN where one side has no weight.

    Weights are whole numbers: sums of them are exact, and equally good thresholds are equal.
    """
    levels, level = np.unique(value, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    parts, at = [], -1
    for start in range(0, weights.shape[1], DRAWS_AT_ONCE):
        mass = weights[order, start : start + DRAWS_AT_ONCE]
        sides = [mass * here[order, None] for here in (positive, ~positive)]
        if len(levels) < len(value):
            sides = [np.add.reduceat(side, starts, axis=0) for side in sides]
        auc, best = _swept(*sides)
        at = int(best[0]) if start == 0 else at
        parts.append((auc, _cuts(levels)[best], _rates(sides, at)))
    return Roc(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _swept(
    pos: Float[np.ndarray, "level draw"], neg: Float[np.ndarray, "level draw"]
) -> tuple[Float[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """AUC and the best level to open at, from what weighs on each level."""
    below_pos, below_neg = (side.cumsum(0) - side for side in (pos, neg))
    num_pos, num_neg = (side.sum(0, dtype=float) for side in (pos, neg))
    # Open at a level are all that are not below it. The highest of equally good levels is taken:
    # the one with the fewest false openings.
    loss = below_pos * num_neg - below_neg * num_pos
    best = len(loss) - 1 - loss[::-1].argmin(0)
    right = np.einsum("ld,ld->d", pos, below_neg + neg / 2, dtype=float)
    with np.errstate(invalid="ignore"):
        return right / (num_pos * num_neg), best


def _rates(sides: list[Float[np.ndarray, "level draw"]], at: int) -> Float[np.ndarray, "draw 2"]:
    """The shares of positives and negatives at or above a level."""
    with np.errstate(invalid="ignore"):
        return np.stack([side[at:].sum(0) / side.sum(0) for side in sides], axis=1).astype(float)


def _cuts(levels: Float[np.ndarray, " level"]) -> Float[np.ndarray, " level"]:
    """Thresholds that let each level and all above pass, half way to the level below."""
    return np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2])


def _against(cell: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The generality inputs with those of each kind of locality, and with all kinds."""
    positive = cell["relation"].isin(POSITIVE)
    kinds = {
        str(kind): cell["relation"] == kind for kind in cell.loc[~positive, "relation"].unique()
    }
    return {kind: cell.loc[positive | here] for kind, here in (kinds | {ANY: ~positive}).items()}


def _row(both: pd.DataFrame, weights: Float[np.ndarray, "example draw"]) -> dict[str, Any]:
    value = np.asarray(both["value"], dtype=float)
    positive = np.asarray(both["relation"].isin(POSITIVE))
    example = np.asarray(both["example"])
    told = roc(value, positive, weights[example])
    columns = {
        "auc": told.auc,
        "threshold": told.threshold,
        "true_open": told.rates[:, 0],
        "false_open": told.rates[:, 1],
    }
    n = len(set(example[positive]) & set(example[~positive]))
    row: dict[str, Any] = {}
    for name, draws in columns.items():
        row[name] = draws[0]
        # One example says nothing about the spread.
        row[f"{name}_low"], row[f"{name}_high"] = _interval(draws[1 : None if n > 1 else 1])
    fixed = value >= PUBLISHED_THRESHOLD
    row["published_true_open"] = _mean(fixed[positive])
    row["published_false_open"] = _mean(fixed[~positive])
    return row | {"n": n}


def _interval(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Bool[np.ndarray, " item"]) -> float:
    return float(values.mean()) if len(values) else np.nan
