"""Summaries of heatmaps, and of how well they point at the object that a question is about."""

import numpy as np
import pandas as pd

from attrib.report.summaries import ONE_EXAMPLE, model_name, percent
from attrib.results import Result
from attrib.stats import bootstrap_means, wilson


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
        means = result.where(method=method, statistic="hit").mean(["layer"]).dropna(subset="mean")
        together = all_layers.where(method=method, statistic="hit").frame["value"].mean()
        row = {"method": method, "all layers": together}
        if len(means):
            best = means.loc[means["mean"].idxmax()]
            low, high = wilson(round(best["mean"] * best["n"]), int(best["n"]))
            at = result.where(method=method, statistic="auc", layer=best["layer"])
            row |= {"best layer": int(best["layer"]), "hit": best["mean"], "low": low,
                    "high": high, "AUC": at.mean(["layer"])["mean"].iloc[0]}  # fmt: skip
        rows.append(row)
    columns = ["method", "best layer", "hit", "low", "high", "AUC", "all layers"]
    return pd.DataFrame(rows, columns=columns)


def summarize_faithfulness(result: Result, all_layers: Result) -> str:
    """The best method of the pointing game against chance, with the table behind it as text."""
    chance = float(result.where(statistic="chance").frame["value"].mean())
    correct = float(result.frame.drop_duplicates("example")["right"].mean())
    table = faithfulness_table(result, all_layers)
    if table["hit"].isna().all():
        return f"{model_name(result)}: no map has a value for the pointing game."
    best = table.loc[table["hit"].idxmax()]
    return (
        f"{model_name(result)}: the hottest patch of the {best['method']} map of layer "
        f"{best['best layer']:.0f} lies on the queried object for {percent(best['hit'])} of the "
        f"questions (95 % CI {percent(best['low'], best['high'])}; chance {percent(chance)}; the "
        f"model answers {percent(correct)} of them correctly)."
    )


def _tokens_with_half(result: Result, layer: int) -> float:
    """Smallest share of an example's visual tokens that holds half of a layer's heatmap; mean."""
    shares = []
    for _, rows in result.where(layer=layer).frame.groupby("example"):
        values = np.sort(np.nan_to_num(np.asarray(rows["value"], float)))[::-1]
        if values.sum() > 0:
            enough = np.searchsorted(np.cumsum(values), values.sum() / 2) + 1
            shares.append(enough / len(values))
    return float(np.mean(shares))
