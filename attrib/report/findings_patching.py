"""What patching says, in sentences that are computed."""

import numpy as np
from jaxtyping import Float

from attrib.results import Result
from attrib.stats import bootstrap_means

STATES = {
    "visual": "visual states",
    "last": "last prompt token's state",
    "text": "words' states",
    "all": "whole prompt's states",
}
HALF = 0.5


def about_patching(result: Result) -> str:
    """Up to where whose answer comes out, and where what was seen passes to the last token."""
    spans = [span for span in STATES if span in set(result.frame["span"])]
    curves = {span: _follows(result, span) for span in spans}
    pairs = len(next(iter(curves.values())))
    same = result.examples - pairs
    told = f" {_pairs(same)} with the same answer to both say nothing." if same else ""
    if not pairs:
        return f"{_model(result)} gives the same answer to both images of every pair.{told}"
    sentences = [_about_span(span, curve) for span, curve in curves.items()]
    passes = _passing(curves, result.seed)
    return (
        f"{_pairs(pairs)} of images to which {_model(result)} gives different answers.{told} "
        + " ".join([*sentences, *([passes] if passes else [])])
    )


def _about_span(span: str, values: Float[np.ndarray, "example layer"]) -> str:
    share = values.mean(0)
    start = f"With the other image's {STATES[span]} put in, its answer comes out in"
    if (share >= HALF).all() or (share < HALF).all():
        return f"{start} {share.min():.0%} to {share.max():.0%} of them at every layer."
    if share[0] >= HALF:
        below = int((share < HALF).argmax())
        return f"{start} {share[0]:.0%} of them at layer 0, in under half from layer {below} on."
    above = len(share) - int((share < HALF)[::-1].argmax())
    return (
        f"{start} {share[0]:.0%} of them at layer 0, in half or more from layer {above} on."
        if above < len(share)
        else f"{start} {share.max():.0%} of them at most, at layer {share.argmax()}."
    )


def _passing(curves: dict[str, Float[np.ndarray, "example layer"]], seed: int) -> str:
    """Where the last token's curve rises above that of the visual tokens."""
    if not {"visual", "last"} <= set(curves):
        return ""
    ahead = curves["last"] - curves["visual"]
    if not (ahead.mean(0) > 0).any():
        return "The last token never carries more of the answer than the visual tokens."
    layer = _crossing(ahead.mean(0)[None])[0]
    sentence = f"From layer {layer} on the last token carries more of it than the visual tokens"
    if len(ahead) < 2:
        return f"{sentence}."
    draws = _crossing(bootstrap_means(ahead, seed=seed))
    low, high = np.percentile(draws, [2.5, 97.5], method="nearest")
    return f"{sentence} (95% interval: layer {low} to {high})."


def _crossing(ahead: Float[np.ndarray, "draw layer"]) -> np.ndarray:
    """The first layer from which on the difference stays positive; one past the last if none."""
    return ahead.shape[1] - (ahead[:, ::-1] <= 0).argmax(1)


def _pairs(number: int) -> str:
    return f"{number} pair" + "s" * (number != 1)


def _follows(result: Result, span: str) -> Float[np.ndarray, "example layer"]:
    _, values = result.where(span=span, statistic="follows").matrix(["layer"])
    return values[np.isfinite(values).all(1)]


def _model(result: Result) -> str:
    return str(result.provenance.get("model", {}).get("name", "The model"))
