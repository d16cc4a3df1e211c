"""Summaries of heatmaps, and of how well they point at the object that a question is about."""

import numpy as np
import pandas as pd

from attrib.report.summaries import ONE_EXAMPLE, model_name, percent
from attrib.results import Result
from attrib.stats import bootstrap_means


def summarize_heatmaps(result: Result) -> str:
    """The layer whose attention output depends most on single visual tokens."""
    groups, values = result.matrix(["layer"])
    layers, curve = np.asarray(groups["layer"]), np.nanmean(values, axis=0)
    name = model_name(result)
    if not np.nanmax(curve) > 0:
        return f"{name}: noise on a visual token changes the attention output in no layer."
    top = int(np.nanargmax(curve))
    layer = int(layers[top])
    draws = np.nan_to_num(bootstrap_means(values, seed=result.seed))
    often = percent((draws.argmax(1) == top).mean())
    stability = f"It ranks first in {often} of bootstrap samples."
    return (
        f"{name}: noise on one visual token changes layer {layer}'s attention output most, by "
        f"{curve[top]:.2g} on average (0 unchanged, 1 reversed). Half of that layer's heatmap lies "
        f"on {percent(_tokens_with_half(result, layer))} of the visual tokens. "
        f"{stability if len(values) > 1 else ONE_EXAMPLE}"
    )


def faithfulness_table(result: Result, all_layers: Result) -> pd.DataFrame:
    """The pointing game per kind of map, at its best layer and with the mean map of all layers.

    Args:
        result: the table "faithfulness".
        all_layers: the same of the mean over all layers of a method's maps.

    Returns:
        Per method: best layer, hit (how often the hottest patch lies on the object), low and high
        (Wilson, 95 %), AUC of patches on the object against all others, and hit of all layers
        together. NaN where a method has no value.
    """
    rows = []
    for method in map(str, dict.fromkeys(result.frame["method"])):
        together = _values(all_layers.where(method=method, statistic="hit"))
        row = {"method": method, "all layers": np.nanmean(together)}
        hits = result.where(method=method, statistic="hit").shares(["layer"]).to_dict("records")
        if hits := [one for one in hits if one["n"]]:
            best = max(hits, key=lambda one: one["mean"])
            auc = _values(result.where(method=method, statistic="auc", layer=best["layer"]))
            row |= {"best layer": best["layer"], "hit": best["mean"], "low": best["low"],
                    "high": best["high"], "AUC": np.nanmean(auc)}  # fmt: skip
        rows.append(row)
    columns = ["method", "best layer", "hit", "low", "high", "AUC", "all layers"]
    return pd.DataFrame(rows, columns=columns)


def summarize_faithfulness(result: Result, all_layers: Result) -> str:
    """The best method of the pointing game against chance."""
    chance = float(np.mean(_values(result.where(statistic="chance"))))
    correct = float(np.mean(np.asarray(result.frame.drop_duplicates("example")["right"], float)))
    rows = faithfulness_table(result, all_layers).dropna(subset="hit").to_dict("records")
    if not rows:
        return f"{model_name(result)}: no map has a value for the pointing game."
    best = max(rows, key=lambda row: row["hit"])
    return (
        f"{model_name(result)}: the hottest patch of the {best['method']} map of layer "
        f"{best['best layer']:.0f} lies on the queried object for {percent(best['hit'])} of the "
        f"questions (95 % CI {percent(best['low'], best['high'])}; chance {percent(chance)}; the "
        f"model answers {percent(correct)} of them correctly)."
    )


def _values(result: Result) -> np.ndarray:
    return np.asarray(result.frame["value"], float)


def _tokens_with_half(result: Result, layer: int) -> float:
    """Smallest share of an example's visual tokens that holds half of a layer's heatmap; mean."""
    shares = []
    for _, rows in result.where(layer=layer).frame.groupby("example"):
        values = np.sort(np.nan_to_num(np.asarray(rows["value"], float)))[::-1]
        if values.sum() > 0:
            enough = np.searchsorted(np.cumsum(values), values.sum() / 2) + 1
            shares.append(enough / len(values))
    return float(np.mean(shares))
