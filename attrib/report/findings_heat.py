"""What heatmaps say, in plain sentences that are computed and never written ahead."""

import numpy as np

from attrib.results import Result
from attrib.stats import bootstrap_means


def about_heatmaps(result: Result) -> str:
    """The layer whose attention depends on the image most, and how evenly over its tokens."""
    groups, values = result.matrix(["layer"])
    layers, curve = np.asarray(groups["layer"]), np.nanmean(values, axis=0)
    name = result.provenance.get("model", {}).get("name", "The model")
    if not np.nanmax(curve) > 0:
        return f"Noise on a visual token changes what {name}'s attention writes in no layer."
    top = int(np.nanargmax(curve))
    half = _tokens_with_half(result, int(layers[top]))
    return " ".join([
        f"{name}'s attention depends on the image most in layer {layers[top]}: noise on one visual "
        f"token moves what it writes at the last prompt token by {curve[top]:.2g} on average, on a "
        f"scale where 1 is the opposite direction.",
        f"Half of that layer's heat lies on {half:.0%} of the visual tokens.",
        _how_sure(values, top, int(layers[top]), result.seed),
    ])  # fmt: skip


def _tokens_with_half(result: Result, layer: int) -> float:
    """Smallest share of an example's tokens that holds half of a layer's heat; mean of examples."""
    shares = []
    for _, rows in result.where(layer=layer).frame.groupby("example"):
        heat = np.sort(np.nan_to_num(np.asarray(rows["value"], float)))[::-1]
        if heat.sum() > 0:
            enough = np.searchsorted(np.cumsum(heat), heat.sum() / 2) + 1
            shares.append(enough / len(heat))
    return float(np.mean(shares))


def _how_sure(values: np.ndarray, top: int, layer: int, seed: int) -> str:
    if len(values) == 1:
        return "This is one example: nothing is known about others."
    often = (np.nan_to_num(bootstrap_means(values, seed=seed)).argmax(1) == top).mean()
    return f"With other examples layer {layer} would be the first in {often:.0%} of the cases."


def about_faithfulness(result: Result, all_layers: Result) -> str:
    """The best layer of every kind of map, with what it gets and what chance would.

    `all_layers` is about the mean of a method's maps over all layers.
    """
    chance = float(np.asarray(result.where(statistic="chance").frame["value"], float).mean())
    share = float(np.asarray(result.frame.drop_duplicates("example")["right"], float).mean())
    name = result.provenance.get("model", {}).get("name", "The model")
    methods = [str(method) for method in dict.fromkeys(result.frame["method"])]
    parts = [_best(result, method) for method in methods]
    together = ", ".join(f"{method} in {_mean(all_layers, method):.0%}" for method in methods)
    return " ".join([
        f"Does {name} look at the object it is asked about ({share:.0%} of its next tokens are "
        f"right)? The hottest patch is on it, by chance in {chance:.0%} of the cases:",
        f"{'; '.join(parts)}.",
        f"With the maps of all layers together: {together}.",
    ])  # fmt: skip


def _best(result: Result, method: str) -> str:
    rows = result.where(method=method, statistic="hit").mean(["layer"])
    values = np.asarray(rows["mean"], float)
    if not np.isfinite(values).any():
        return f"{method} nowhere"
    best = rows.iloc[int(np.nanargmax(values))]
    auc = result.where(method=method, statistic="auc", layer=best["layer"]).mean(["layer"])
    interval = "" if best["n"] < 2 else f" (95% interval {best['low']:.0%} to {best['high']:.0%})"
    return (
        f"{method} in {best['mean']:.0%}{interval} at its best layer, {best['layer']:.0f}, with an "
        f"AUC of {auc['mean'].iloc[0]:.2f} over patches"
    )


def _mean(all_layers: Result, method: str) -> float:
    rows = all_layers.where(method=method, statistic="hit").frame
    return float(np.nanmean(np.asarray(rows["value"], float)))
