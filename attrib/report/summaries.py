"""Summaries of analyses in plain sentences. Every number is computed from the results given."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.analyses.direct_logits import MODULES
from attrib.results import Result
from attrib.stats import bootstrap_means, interval, wilson

SPECIFIC = 0.5  # a control above that is no control
ONE_EXAMPLE = "One example: no confidence interval."
TOKENS = {"text": "text tokens", "visual": "visual tokens", "both": "tokens"}
PATCHED = {
    "visual": "visual tokens",
    "last": "last prompt token",
    "text": "text tokens",
    "all": "whole prompt",
}


def summarize_contributions(result: Result, target: str = "the key token") -> str:
    """The share of the contribution to the target token by depth, and the layer of the peak."""
    return f"{contribution_share(result, target)} {contribution_peak(result)}".strip()


def contribution_share(result: Result, target: str) -> str:
    """The half of the layers with more of the contribution to the target token, and its share."""
    values = _per_layer(result)
    curve = np.nanmean(values, axis=0)
    if not (curve > 0).any():
        return f"{model_name(result)}: no layer contributes to {target} (all means are negative)."
    num, half = len(curve), len(curve) // 2
    late = _late_share(curve[None], half)[0] >= 0.5
    shares = _late_share(np.stack([curve, *bootstrap_means(values, seed=result.seed)]), half)
    shares = shares if late else 1 - shares
    ends = f" (95 % CI {percent(*interval(shares[1:]))})" if len(values) > 1 else ""
    return (
        f"{model_name(result)}: {percent(shares[0])} of the contribution to {target} comes from "
        f"layers {f'{half}-{num - 1}' if late else f'0-{half - 1}'}{ends}."
    )


def contribution_peak(result: Result) -> str:
    """The layer with the highest contribution; empty if no contribution is positive."""
    values = _per_layer(result)
    peak = int(np.argmax(curve := np.nanmean(values, axis=0)))
    if not curve[peak] > 0:
        return ""
    return f"The contribution is highest in layer {peak}{_stability(values, peak, result.seed)}."


def summarize_demo(right: Result, wrong: Result) -> str:
    """The headline of the demo report, with a warning where the control fails."""
    sentence = contribution_share(right, "the answer token")
    control = _control(right, wrong)
    if control is None or control[2] < SPECIFIC:
        return sentence
    return f"{sentence} A wrong answer receives nearly as much, so do not rely on this curve."


def summarize_control(right: Result, wrong: Result) -> str:
    """How much contribution a wrong key token receives (VisEdit, Fig. 6)."""
    control = _control(right, wrong)
    if control is None:
        return "Control: no example has a wrong answer to compare with."
    ratio, low, high, n = control
    return (
        f"Control: the answer to an unrelated question receives {percent(ratio)} of the "
        f"contribution (95 % CI {percent(low, high)}, {n} examples), so the curve is "
        f"{'' if high < SPECIFIC else 'not '}specific to this answer."
    )


def summarize_attention(result: Result) -> str:
    """The layers that attend most and least to the image; text against visual tokens."""
    means = result.mean(["statistic", "layer"]).set_index(["statistic", "layer"])["mean"].unstack()
    visual = means.loc["visual_sum"]
    if visual.isna().all():
        return "The prompts have no visual tokens."
    text_ahead = means.loc["text_mean"] > means.loc["visual_mean"]
    return (
        f"The last prompt token attends most to the image in layer {visual.idxmax()} "
        f"({percent(visual.max())} of its attention) and least in layer {visual.idxmin()} "
        f"({percent(visual.min())}). An average text token receives more attention than an "
        f"average visual token in {text_ahead.sum()} of {len(text_ahead)} layers."
    )


def summarize_answers(answers: Result) -> str:
    """How many prompts the model answers correctly."""
    right, n = int(np.sum(answers.frame["value"])), answers.examples
    return (
        f"The model answers {right} of {n} prompts correctly (95 % CI {percent(*wilson(right, n))};"
        " greedy decoding, exact match)."
    )


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
        f"{_stability(curves, top, result.seed)}: {noise} there changes the output "
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


def percent(*shares: float) -> str:
    """One share as "75 %", or the two ends of an interval as "66-85 %"."""
    return f"{'-'.join(dict.fromkeys(f'{100 * share:.0f}' for share in shares))} %"


def model_name(result: Result) -> str:
    """The name under which the model was loaded."""
    return str(result.provenance.get("model", {}).get("name", "The model"))


def _late_share(curves: Float[np.ndarray, "curve layer"], half: int) -> Float[np.ndarray, " curve"]:
    # Negative contributions are left out: shares of a sum with both signs are no shares.
    positive = np.clip(curves, 0, None)
    return positive[:, half:].sum(1) / positive.sum(1)


def _stability(values: Float[np.ndarray, "example layer"], top: int, seed: int) -> str:
    """In how many bootstrap samples the group at `top` is the highest, in brackets."""
    if len(values) == 1:
        return " (one example: no confidence interval)"
    often = (np.nan_to_num(bootstrap_means(values, seed=seed)).argmax(1) == top).mean()
    return f" (in {percent(often)} of bootstrap samples)"


def _control(right: Result, wrong: Result) -> tuple[float, float, float, int] | None:
    """Size of the contributions of a wrong key over those of the right one, its CI, and n."""
    pairs = pd.DataFrame({"right": _sizes(right), "wrong": _sizes(wrong)}).dropna()
    if not len(values := pairs.to_numpy()):
        return None
    draws = bootstrap_means(values, seed=right.seed)
    low, high = interval(draws[:, 1] / draws[:, 0])
    ratio = values[:, 1].mean() / values[:, 0].mean()
    return float(ratio), float(low), float(high), len(pairs)


def _sizes(result: Result) -> pd.Series:
    """Mean absolute contribution of each example."""
    return pd.Series(result.frame["value"].abs().groupby(result.frame["example"]).mean())


def _per_layer(result: Result) -> Float[np.ndarray, "example layer"]:
    """Contributions of a layer's attention and MLP together."""
    groups, values = result.matrix(["layer", "module"])
    return np.sum([values[:, np.asarray(groups["module"] == m)] for m in MODULES], axis=0)


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
