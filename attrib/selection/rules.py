"""The rules: what each says about writing at a layer, as scores; higher is a better place.

Every rule maps mean curves over the layers to scores, for many bootstrap draws at once. A score of
0 or less says that nothing speaks for a layer; NaN that the rule cannot say, as for the last layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

Modality = Literal["text", "visual"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
RuleName = Literal[
    "consensus", "onset", "sensitivity", "patching",
    "onset-attn", "onset-mlp", "reach", "attention", "pointing",
]  # fmt: skip
Draws = Float[np.ndarray, "draw layer"]
# Less than a thousandth of a rule's best counts as nothing. Sensitivity spans that much: with a
# hundredth, layers where noise hardly matters passed for layers where it matters little (LOG.md).
FLOOR = 0.001
ROUNDING = 1e-12  # relative size of differences that are none


@dataclass(frozen=True)
class Rule:
    """One way to score layers.

    Attributes:
        description: what a score is, in words.
        curves: per modality, the curves it looks at.
        score: maps them, in this order, to scores.
        votes: whether it has a say in the consensus.
    """

    description: str
    curves: Mapping[Modality, tuple[str, ...]]
    score: Callable[..., Draws]
    votes: bool = False


def step_score(curve: Draws) -> Draws:
    """How well a step up right behind layer l describes a curve: in [-1, 1], negative for a fall.

    The share of the curve's variance over the layers that two means explain, one of layers 0 to l
    and one of layers l + 1 and up. Its highest value is the least-squares change point of two
    constant segments, exact because every break point is tried; VisEdit inserts "before the
    high-contribution layer", which is the first one behind the break.
    """
    num = curve.shape[1]
    before = np.arange(1, num)
    sums = np.cumsum(curve, axis=1)
    low = sums[:, :-1] / before
    high = (sums[:, -1:] - sums[:, :-1]) / (num - before)
    total = ((curve - curve.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True)
    flat = total <= ROUNDING * (curve**2).sum(1, keepdims=True)
    between = before * (num - before) / num * (high - low) ** 2 * np.sign(high - low)
    share = np.where(flat, 0.0, between / np.where(flat, 1.0, total))
    return _but_last(share)


def same_layer(curve: Draws) -> Draws:
    """The curve itself: it came from writing at the output of layer l."""
    return _but_last(curve[:, :-1])


def next_layer(curve: Draws) -> Draws:
    """The curve one layer on: it is about what layer l + 1 reads."""
    return _but_last(curve[:, 1:])


def crossover(holds: Draws, gone: Draws) -> Draws:
    """The share for which it holds at layer l, times the share for which it is gone at l + 1.

    Highest where the two curves cross: with a step it is 1 at the last layer before it and 0
    elsewhere.
    """
    return _but_last(holds[:, :-1] * gone[:, 1:])


RULES: dict[RuleName, Rule] = {
    "onset": Rule(
        "how well a step up of attention's and MLP's contributions behind the layer fits (VisEdit)",
        {"text": ("contributions",), "visual": ("contributions",)},
        step_score,
        votes=True,
    ),
    "sensitivity": Rule(
        "KL divergence of the output under noise on the modality in the layer, mean over the "
        "sizes of noise (DualEdit)",
        {"text": ("noise text",), "visual": ("noise visual",)},
        same_layer,
        votes=True,
    ),
    "patching": Rule(
        "whether the answer passes between the layer and the next: away from the visual tokens, "
        "or for text into the last prompt token",
        {"text": ("stays last", "follows last"), "visual": ("follows visual", "stays visual")},
        crossover,
        votes=True,
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
        "how often the answer can still be changed there: it follows another image's visual "
        "states, or for text is not yet in the last prompt token",
        {"text": ("stays last",), "visual": ("follows visual",)},
        same_layer,
    ),
    "attention": Rule(
        "attention of the last prompt token to the modality in the next layer (DualEdit, Fig. 1)",
        {"text": ("attention text",), "visual": ("attention visual",)},
        next_layer,
    ),
    "pointing": Rule(
        "how often the next layer's heatmap points at the object asked about",
        {"visual": ("pointing visual",)},
        next_layer,
    ),
}
CONSENSUS_RULES: tuple[RuleName, ...] = tuple(name for name, rule in RULES.items() if rule.votes)
CONSENSUS = (
    "weighted geometric mean of the voting rules' scores, each divided by its highest (a "
    "thousandth at least). A product, because a good layer is good by every rule: ranks of rules "
    "that rise and fall with depth would cancel out, and a rule that is the same everywhere has no "
    "say. A rule's weight is 1 minus the variance of its scores between draws of examples over "
    "their variance between layers, 0 at least: what chance decides has no say either"
)


def consensus(scores: Mapping[str, Draws]) -> tuple[Draws, dict[str, float]]:
    """The rules' scores as one, and the weight of each rule; the first draw is the data itself.

    See `CONSENSUS` for how and why. Layers that one of the rules cannot score have none.
    """
    shares = {name: relative(values) for name, values in scores.items()}
    weights = {name: reliability(values) for name, values in shares.items()}
    total = sum(weights.values())
    # Where all are noise, none is better than another.
    even = {name: weight / total if total else 1 / len(weights) for name, weight in weights.items()}
    logs = [even[name] * np.log(np.maximum(shares[name], FLOOR)) for name in shares]
    return np.exp(sum(logs[1:], start=logs[0])), weights


def relative(scores: Draws) -> Draws:
    """Scores over the highest of their draw; 0 where nothing speaks for any layer."""
    top = np.nanmax(np.nan_to_num(scores, nan=-np.inf), axis=1, keepdims=True)
    known = np.isfinite(top) & (top > 0)
    share = np.clip(scores, 0, None) / np.where(known, top, 1.0)
    return np.where(known | np.isnan(scores), share, 0.0)


def reliability(scores: Draws) -> float:
    """In [0, 1]: 1 minus the variance between draws over the variance between layers."""
    known = np.isfinite(scores).all(0)
    between = scores[0, known].var() if known.any() else 0.0
    if not between > 0:
        return 0.0
    return (
        float(max(0.0, 1 - scores[1:, known].var(0).mean() / between)) if len(scores) > 2 else 1.0
    )


def _but_last(scores: Float[np.ndarray, "draw but_last"]) -> Draws:
    return np.pad(scores, ((0, 0), (0, 1)), constant_values=np.nan)
