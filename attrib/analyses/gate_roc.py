"""ROC statistics of a gate: do similarities separate generality from locality inputs?

A gate opens at or above a threshold. It is judged by the ROC-AUC and at the threshold with the
largest true minus false open rate (Youden). That threshold is chosen on the same examples, so its
rates are slightly better than on new ones; the intervals show the spread over examples, not that
bias.
"""

from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from attrib.errors import AttribError
from attrib.results import Result
from attrib.stats import RESAMPLES, bootstrap_weights, interval, roc

POSITIVE = ("text_generality", "visual_generality")
ANY = "any locality"  # all kinds of locality inputs together
PUBLISHED_THRESHOLD = 0.8  # DualEdit: in its program, and in its paper for BLIP-2 (LLaVA: 0.6)
DECIMALS = 6  # similarities are compared to 6 decimals, the precision of float32


def gate_roc(result: Result, *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """AUC and best threshold of a gate, per layer, token and kind of locality input.

    Positives are the generality inputs; negatives are those of one `relation`, or of all of them
    (`ANY`). Intervals are 95 % bootstrap intervals over examples; an example is drawn with all its
    inputs. The threshold is chosen again in each draw; the intervals of the rates are those of the
    threshold chosen on all examples.

    Args:
        result: Columns example, layer, token, relation, value; values that are not finite are
            ignored (text without visual tokens).
        resamples: Number of bootstrap draws, seeded by the result.

    Returns:
        One row per layer, token and relation: `auc`, `threshold`, `true_open` and `false_open` (the
        shares of positives and negatives at or above it), `published_true_open` and
        `published_false_open` (at the threshold 0.8), the first four with `_low` and `_high`; and
        `n`, the number of examples with a positive and a negative.

    Raises:
        AttribError: No value is finite.
    """
    frame = result.frame[np.isfinite(result.frame["value"])]
    example, ids = pd.factorize(frame["example"])
    frame = frame.assign(example=example, value=frame["value"].round(DECIMALS))
    if not len(ids):
        raise AttribError("no similarity to an edit is finite: there is nothing to separate")
    weights = bootstrap_weights(len(ids), resamples=resamples, seed=result.seed).astype(np.float32)
    rows = []
    for place, cell in frame.groupby(["layer", "token"], sort=True):
        layer, token = cast(tuple[int, str], place)
        for relation, both in _by_negatives(cell).items():
            head = {"layer": layer, "token": token, "relation": relation}
            rows.append(head | _row(both, weights))
    return pd.DataFrame(rows)


def best_layer(table: pd.DataFrame, token: str) -> int:
    """The layer with the largest AUC of generality against all locality, for a token.

    `table` comes from `gate_roc`.

    Raises:
        AttribError: No layer has an AUC: generality or locality inputs are missing.
    """
    rows = overall(table, token)
    if not np.isfinite(rows["auc"]).any():
        raise AttribError(f"{token}: no example has both generality and locality inputs")
    return int(rows["layer"].loc[rows["auc"].idxmax()])


def overall(table: pd.DataFrame, token: str) -> pd.DataFrame:
    """The rows of a token against all locality inputs, one per layer."""
    return table.loc[(table["token"] == token) & (table["relation"] == ANY)]


def _by_negatives(cell: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The generality inputs with those of each kind of locality, and with all kinds."""
    positive = cell["relation"].isin(POSITIVE)
    kinds = {
        str(kind): cell["relation"] == kind for kind in cell.loc[~positive, "relation"].unique()
    }
    return {kind: cell.loc[positive | rows] for kind, rows in (kinds | {ANY: ~positive}).items()}


def _row(both: pd.DataFrame, weights: Float[np.ndarray, "draw example"]) -> dict[str, Any]:
    value = np.asarray(both["value"], dtype=float)
    positive = np.asarray(both["relation"].isin(POSITIVE))
    example = np.asarray(both["example"])
    curve = roc(value, positive, weights[:, example])
    columns = {
        "auc": curve.auc,
        "threshold": curve.threshold,
        "true_open": curve.rates[:, 0],
        "false_open": curve.rates[:, 1],
    }
    n = len(set(example[positive]) & set(example[~positive]))
    row: dict[str, Any] = {}
    for name, draws in columns.items():
        row[name] = draws[0]
        # The spread is unknown from a single example.
        row[f"{name}_low"], row[f"{name}_high"] = interval(draws[1 : None if n > 1 else 1])
    fixed = value >= PUBLISHED_THRESHOLD
    row["published_true_open"] = _mean(fixed[positive])
    row["published_false_open"] = _mean(fixed[~positive])
    return row | {"n": n}


def _mean(values: Bool[np.ndarray, " item"]) -> float:
    return float(values.mean()) if len(values) else np.nan
