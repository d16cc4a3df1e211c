"""Summaries of interventions: noise, patching, heatmaps, and how well those point at objects."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.analyses.deletion import RANDOM
from attrib.report.summaries import ONE_EXAMPLE, model_name, percent, stability
from attrib.results import Result
from attrib.stats import bootstrap_means, interval

TOKENS = {"text": "text tokens", "visual": "visual tokens", "both": "tokens"}
PATCHED = {
    "visual": "visual tokens",
    "last": "last prompt token",
    "text": "text tokens",
    "all": "whole prompt",
}


def summarize_sensitivity(result: Result) -> str:
    """The layer in which noise changes the output most, by how much, and how stable that is."""
    groups, values = result.matrix(["sigma", "layer"])
    sigmas, layers = (np.asarray(groups[name]) for name in ("sigma", "layer"))
    largest = sigmas == sigmas.max()
    at, curves = layers[largest], values[:, largest]
    curve = np.nanmean(curves, axis=0)
    relative = result.provenance.get("options", {}).get("unit") == "std"
    plural = "" if sigmas.max() == 1 else "s"
    noise = f"noise of {sigmas.max():g}{f' standard deviation{plural}' if relative else ''}"
    tokens = f"its {TOKENS[str(result.frame['modality'].iloc[0])]}"
    if not curve.max() > 0:
        return f"{model_name(result)}: {noise} on {tokens} does not change the output in any layer."
    top = int(np.argmax(curve))
    low, high = interval(bootstrap_means(curves[:, top : top + 1], seed=result.seed)[:, 0])
    ends = f" (95 % CI {low:.3g}-{high:.3g})" if len(curves) > 1 else ""
    sentences = [
        f"{model_name(result)} is most sensitive to noise on {tokens} in layer {at[top]}"
        f"{stability(curves, top, result.seed)}: {noise} there changes the output "
        f"distribution by {curve[top]:.3g} nats{ends}, {curve[top] / curve.mean():.1f} times the "
        f"mean over layers.",
        _noise_levels(values, sigmas, top),
        _last_layer_warning(result, int(at[top])),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def summarize_patching(result: Result) -> str:
    """Up to which layer patching flips answers, and where the last token takes the answer over."""
    spans = [span for span in PATCHED if span in set(result.frame["span"])]
    curves = {span: _flips(result, span) for span in spans}
    pairs = len(next(iter(curves.values())))
    same = result.examples - pairs
    excluded = f" {_count(same)} excluded (same answer to both images)." if same else ""
    if not pairs:
        return f"{model_name(result)}: no pair of images has two different answers.{excluded}"
    sentences = [_flip_rate(span, curve) for span, curve in curves.items()]
    if {"visual", "last"} <= set(curves):
        sentences.append(_crossover(curves["last"] - curves["visual"], result.seed))
    return (
        f"{model_name(result)}: {_count(pairs)} of images with different answers.{excluded} "
        + " ".join(sentences)
    )


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
    share = percent((draws.argmax(1) == top).mean())
    stable = f"It ranks first in {share} of bootstrap samples."
    return (
        f"{name}: noise on one visual token changes layer {layer}'s attention output most, by "
        f"{curve[top]:.2g} on average (0 unchanged, 1 reversed). Half of that layer's heatmap lies "
        f"on {percent(_tokens_with_half(result, layer))} of the visual tokens. "
        f"{stable if len(values) > 1 else ONE_EXAMPLE}"
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


def summarize_deletion(result: Result) -> str:
    """How each map's order of erasing compares with a random one, in a sentence and a table."""
    table = result.mean(["method", "statistic"])
    over = {
        method: deletion_gaps(result, method) - deletion_gaps(result, RANDOM)
        for method in dict.fromkeys(map(str, result.frame["method"]))
        if method != RANDOM
    }
    spans = {
        name: interval(bootstrap_means(v[:, None], seed=result.seed)) for name, v in over.items()
    }
    better = [name for name, (low, _) in spans.items() if low[0] > 0]
    best = max(over, key=lambda name: np.nanmean(over[name]))
    head = f"{model_name(result)}: insertion minus deletion area is"
    if result.examples < 2:
        sentence = f"{head} largest for the {best} map. {ONE_EXAMPLE}"
    elif better:
        sentence = f"{head} above that of a random order for {', '.join(better)}; most for {best}."
    else:
        sentence = f"{head} not above that of a random order for any map."
    areas = table.assign(
        area=[f"{m:.3f} ({a:.3f}-{b:.3f})" for m, a, b in table[["mean", "low", "high"]].to_numpy()]
    )
    text = areas.pivot(index="method", columns="statistic", values="area")
    text["over random"] = [
        f"{np.nanmean(over[n]):+.3f} ({spans[n][0][0]:+.3f} to {spans[n][1][0]:+.3f})"
        if n in over
        else ""
        for n in text.index
    ]
    note = "Intervals: 95 %, bootstrap over examples, each method alone (no correction)."
    return f"{sentence}\n\n{text.to_string()}\n\n{note}"


def deletion_gaps(result: Result, method: str) -> Float[np.ndarray, " example"]:
    """Insertion minus deletion area of each example, in the order of examples."""
    insertion, deletion = (
        _values(result.where(method=method, statistic=name)) for name in ("insertion", "deletion")
    )
    return insertion - deletion


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


def _noise_levels(
    values: Float[np.ndarray, "example group"], sigmas: Float[np.ndarray, " group"], top: int
) -> str:
    """Whether smaller noise has its peak in the same layer."""
    levels = [sigma for sigma in np.unique(sigmas) if sigma > 0]
    if len(levels) < 2:
        return ""
    peaks = [int(np.argmax(np.nanmean(values[:, sigmas == sigma], axis=0))) for sigma in levels]
    return f"The same layer is the highest at {peaks.count(top)} of {len(levels)} noise levels."


def _last_layer_warning(result: Result, layer: int) -> str:
    options = result.provenance.get("options", {})
    last = result.provenance.get("model", {}).get("layers", 0) - 1
    excluded = options.get("exclude_last", options.get("spare_last"))  # the former name
    if layer != last or options.get("modality") == "visual" or excluded:
        return ""
    return "In the last layer, noise hits the unembedded state itself: compare with --exclude-last."


def _flip_rate(span: str, values: Float[np.ndarray, "example layer"]) -> str:
    share = values.mean(0)
    start = f"Patching the {PATCHED[span]} flips"
    if (share >= 0.5).all() or (share < 0.5).all():
        return f"{start} {percent(share.min(), share.max())} of answers at every layer."
    first = f"{percent(share[0])} of answers at layer 0"
    if share[0] >= 0.5:
        return f"{start} {first} and fewer than half from layer {int((share < 0.5).argmax())} on."
    above = len(share) - int((share < 0.5)[::-1].argmax())
    if above < len(share):
        return f"{start} {first} and at least half from layer {above} on."
    return f"{start} at most {percent(share.max())} of answers, at layer {share.argmax()}."


def _crossover(ahead: Float[np.ndarray, "example layer"], seed: int) -> str:
    """The layer from which patching the last token flips more answers than the visual tokens."""
    if not (ahead.mean(0) > 0).any():
        return "Patching the last token never flips more answers than the visual tokens."
    layer, ends = _first_positive(ahead.mean(0)[None])[0], ""
    if len(ahead) > 1:
        draws = _first_positive(bootstrap_means(ahead, seed=seed))
        low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
        ends = f" (95 % CI: layers {low}-{high})"
    return (
        f"From layer {layer} on, patching the last token flips more answers than patching the "
        f"visual tokens{ends}."
    )


def _first_positive(ahead: Float[np.ndarray, "draw layer"]) -> np.ndarray:
    """The first layer from which on the difference stays positive; the number of layers if none."""
    return ahead.shape[1] - (ahead[:, ::-1] <= 0).argmax(1)


def _count(pairs: int) -> str:
    return f"{pairs} pair{'s' * (pairs != 1)}"


def _flips(result: Result, span: str) -> Float[np.ndarray, "example layer"]:
    _, values = result.where(span=span, statistic="follows").matrix(["layer"])
    return values[np.isfinite(values).all(1)]
