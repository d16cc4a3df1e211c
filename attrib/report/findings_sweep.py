"""What a sweep says, in plain sentences that are computed and never written ahead."""

from typing import Any

import numpy as np
from jaxtyping import Float

from attrib.results import Result
from attrib.stats import bootstrap_means

HIT = {"text": "its text tokens", "visual": "its visual tokens", "both": "all its tokens"}


def about_sweep(result: Result) -> str:
    """The layer in which noise moves the output most, how far, and how sure that is."""
    groups, values = result.matrix(["sigma", "layer"])
    sigmas, layers = (np.asarray(groups[name]) for name in ("sigma", "layer"))
    loudest = sigmas == sigmas.max()
    at, curves = layers[loudest], values[:, loudest]
    curve = np.nanmean(curves, axis=0)
    options: dict[str, Any] = dict(result.provenance.get("options", {}))
    name = result.provenance.get("model", {}).get("name", "The model")
    hit = HIT[str(result.frame["modality"].iloc[0])]
    relative = options.get("unit") == "std"
    size = f"{sigmas.max():g} times their deviation" if relative else f"sigma {sigmas.max():g}"
    if not curve.max() > 0:
        return f"Noise of {size} on {hit} does not move the output of {name} in any layer."
    top = int(np.argmax(curve))
    return " ".join([
        f"{name} is most sensitive to noise on {hit} in layer {at[top]}: noise of {size} there "
        f"moves its output by {curve[top]:.3g} nats{_interval(curves[:, top], result.seed)}, "
        f"{curve[top] / curve.mean():.1f} times the mean over the layers.",
        _how_sure(curves, int(at[top]), top, result.seed),
        _other_sigmas(values, sigmas, top),
        _caution(result, int(at[top]), options),
    ]).strip()  # fmt: skip


def _interval(values: Float[np.ndarray, " example"], seed: int) -> str:
    if len(values) == 1:
        return ""
    low, high = np.nanpercentile(bootstrap_means(values[:, None], seed=seed), [2.5, 97.5])
    return f" (95% interval {low:.3g} to {high:.3g})"


def _how_sure(curves: Float[np.ndarray, "example layer"], layer: int, top: int, seed: int) -> str:
    if len(curves) == 1:
        return "This is one example: nothing is known about others."
    often = (bootstrap_means(curves, seed=seed).argmax(1) == top).mean()
    return f"With other examples layer {layer} would be the highest in {often:.0%} of the cases."


def _other_sigmas(
    values: Float[np.ndarray, "example group"], sigmas: Float[np.ndarray, " group"], top: int
) -> str:
    """Whether less noise points at the same layer."""
    known = [sigma for sigma in np.unique(sigmas) if sigma > 0]
    if len(known) < 2:
        return ""
    peaks = [int(np.argmax(np.nanmean(values[:, sigmas == sigma], axis=0))) for sigma in known]
    return f"It is the highest for {peaks.count(top)} of {len(known)} sizes of noise."


def _caution(result: Result, layer: int, options: dict[str, Any]) -> str:
    last = result.provenance.get("model", {}).get("layers", 0) - 1
    if layer != last or options.get("modality") == "visual" or options.get("spare_last"):
        return ""
    return (
        "In the last layer noise hits the very state the answer is read from: "
        "compare with --spare-last."
    )
