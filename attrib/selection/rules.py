"""Rules that score every layer as a place to edit, from curves over the layers.

A rule maps mean curves to scores, for many bootstrap draws at once; a higher score is a better
layer. A score of 0 or less means that there is no evidence for the layer, NaN that the rule does
not apply, as to the last layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from attrib.vocabulary import Modality, RuleName

Draws = Float[np.ndarray, "draw layer"]
# Smallest share of a rule's highest score. Sensitivity spans three powers of ten: with a hundredth,
# layers that are insensitive to noise passed for weakly sensitive (LOG.md).
FLOOR = 0.001
ROUNDING = 1e-12  # relative size of differences that are rounding errors


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        description: of its score.
        curves: per modality, the names of the curves that it uses.
        score: maps the curves, in this order, to scores.
        vote: the same for its part in the consensus; None without a vote.
    """

    description: str
    curves: Mapping[Modality, tuple[str, ...]]
    score: Callable[..., Draws]
    vote: Callable[..., Draws] | None = None


def step_score(curve: Draws) -> Draws:
    """How well a step up right after layer l fits a curve, in [-1, 1]; negative for a step down.

    The share of the curve's variance over layers that is explained by two means, of layers 0 to l
    and of layers l + 1 and up. Its maximum is the least-squares change point of two constant
    segments. VisEdit inserts "before the high-contribution layer", the first one after the step.
    """
    num = curve.shape[1]
    before = np.arange(1, num)
    sums = np.cumsum(curve, axis=1)
    low = sums[:, :-1] / before
    high = (sums[:, -1:] - sums[:, :-1]) / (num - before)
    total = ((curve - curve.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True)
    flat = total <= ROUNDING * (curve**2).sum(1, keepdims=True)
    between = before * (num - before) / num * (high - low) ** 2 * np.sign(high - low)
    return _append_nan(np.where(flat, 0.0, between / np.where(flat, 1.0, total)))


def same_layer(curve: Draws) -> Draws:
    """The curve's value at layer l, for curves measured by writing at the output of layer l."""
    return _append_nan(curve[:, :-1])


def next_layer(curve: Draws) -> Draws:
    """The curve's value at layer l + 1, for curves about what a layer reads."""
    return _append_nan(curve[:, 1:])


def crossover(before: Draws, after: Draws) -> Draws:
    """Value of the falling curve at layer l times value of the rising curve at layer l + 1.

    Highest where the curves cross; for step functions 1 at the last layer before the step, else 0.
    """
    return _append_nan(before[:, :-1] * after[:, 1:])


def before_crossover(before: Draws, after: Draws) -> Draws:
    """The falling curve alone, which does not ask how close the crossing is.

    An editor has to write before the answer moves, not right before it: where it moves late, few
    layers are left to use what was written (docs/layer-selection.md).
    """
    del after
    return same_layer(before)


RULES: dict[RuleName, Rule] = {
    "onset": Rule(
        "fit of a step up of attention's and MLP's contributions after the layer (VisEdit)",
        {"text": ("contributions",), "visual": ("contributions",)},
        step_score,
        vote=step_score,
    ),
    "sensitivity": Rule(
        "KL divergence of the output under noise on the modality in the layer, mean over noise "
        "levels (DualEdit)",
        {"text": ("noise text",), "visual": ("noise visual",)},
        same_layer,
        vote=same_layer,
    ),
    "patching": Rule(
        "whether the answer moves between the layer and the next: out of the visual tokens, or for "
        "text into the last prompt token",
        {"text": ("stays last", "follows last"), "visual": ("follows visual", "stays visual")},
        crossover,
        vote=before_crossover,
    ),
    "onset-attn": Rule(
        "onset of attention's contributions alone",
        {"text": ("contributions attn",), "visual": ("contributions attn",)},
        step_score,
    ),
    "onset-mlp": Rule(
        "onset of MLP's contributions alone",
        {"text": ("contributions mlp",), "visual": ("contributions mlp",)},
        step_score,
    ),
    "reach": Rule(
        "share of answers that can still be changed at the layer: they follow another image's "
        "visual states, or for text are not yet in the last prompt token",
        {"text": ("stays last",), "visual": ("follows visual",)},
        same_layer,
    ),
    "attention": Rule(
        "attention of the last prompt token to the modality in the next layer (DualEdit, Fig. 1)",
        {"text": ("attention text",), "visual": ("attention visual",)},
        next_layer,
    ),
    "pointing": Rule(
        "share of questions for which the next layer's heatmap points at the queried object",
        {"visual": ("pointing visual",)},
        next_layer,
    ),
}
CONSENSUS_RULES: tuple[RuleName, ...] = tuple(name for name, rule in RULES.items() if rule.vote)
CONSENSUS = (
    "weighted geometric mean of three scores, each divided by its highest (at least a thousandth): "
    "onset, sensitivity, and of patching the share of answers that can still be changed at the "
    "layer (`reach`). A product, so that a layer must score well under every rule; ranks of rules "
    "that rise and fall with depth would cancel out. Rules are weighted by how consistent their "
    "scores are across samples: a weight is 1 minus the variance of the scores between bootstrap "
    "samples over their variance between layers, at least 0. Of the layers within one standard "
    "error of the highest score, the latest is chosen"
)


def consensus(scores: Mapping[str, Draws]) -> tuple[Draws, dict[str, float]]:
    """Combine the rules' scores; also returns the weight of each rule.

    The first draw must be the data itself. See `CONSENSUS` for the definition. Layers that one of
    the rules cannot score are NaN.
    """
    shares = {name: relative(values) for name, values in scores.items()}
    weights = {name: reliability(values) for name, values in shares.items()}
    total = sum(weights.values())
    # Equal weights if all scores are noise.
    scaled = {name: w / total if total else 1 / len(weights) for name, w in weights.items()}
    logs = [scaled[name] * np.log(np.maximum(shares[name], FLOOR)) for name in shares]
    return np.exp(sum(logs[1:], start=logs[0])), weights


def relative(scores: Draws) -> Draws:
    """Scores divided by the highest of their draw; 0 where no layer has a positive score."""
    top = np.nanmax(np.nan_to_num(scores, nan=-np.inf), axis=1, keepdims=True)
    known = np.isfinite(top) & (top > 0)
    share = np.clip(scores, 0, None) / np.where(known, top, 1.0)
    return np.where(known | np.isnan(scores), share, 0.0)


def reliability(scores: Draws) -> float:
    """1 minus the variance between draws over the variance between layers, in [0, 1]."""
    known = np.isfinite(scores).all(0)
    between = scores[0, known].var() if known.any() else 0.0
    if not between > 0:
        return 0.0
    if len(scores) <= 2:
        return 1.0
    return float(max(0.0, 1 - scores[1:, known].var(0).mean() / between))


def _append_nan(scores: Float[np.ndarray, "draw but_last"]) -> Draws:
    """Add the last layer, to which no rule applies: the last prompt token reads nothing of it."""
    return np.pad(scores, ((0, 0), (0, 1)), constant_values=np.nan)
