"""Statistics over examples: bootstrap, intervals, ROC-AUC, rank correlation.

A bootstrap draw is a vector of weights: how often each example was drawn. The same weights serve
every statistic of a run, so that curves of one draw belong together.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

RESAMPLES = 1000  # each end of a 95 % interval then rests on 25 draws
PERCENTILES = (2.5, 97.5)
Z = 1.959964  # of a normal distribution, 95 %
DRAWS_PER_CHUNK = 100
FEWEST_RANKS = 3
FEWEST_ITEMS = 2  # of which a bootstrap has a spread
_NONE = (float("nan"), float("nan"))


def bootstrap_weights(
    n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "draw example"]:
    """How often each of `n` examples is drawn.

    Returns:
        `resamples` + 1 rows: first every example once (the data itself), then the draws with
        replacement. The same seed and `n` give the same draws.
    """
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn])


def weighted_means(
    values: Float[np.ndarray, "example group"], weights: Float[np.ndarray, "draw example"]
) -> Float[np.ndarray, "draw group"]:
    """Mean of each group in each draw. Values that are not finite are ignored; NaN without any."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return weights @ np.where(finite, values, 0.0) / (weights @ finite)


def bootstrap_means(
    values: Float[np.ndarray, "example group"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resample group"]:
    """Means per group over examples drawn with replacement; see `weighted_means`."""
    return weighted_means(
        values, bootstrap_weights(len(values), resamples=resamples, seed=seed)[1:]
    )


def bootstrap_item_means(
    values: Float[np.ndarray, " example"],
    items: Int[np.ndarray, " example"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, " resample"]:
    """Means over items drawn with replacement, each with all its examples (a cluster bootstrap).

    Examples that share an item are not independent: drawn one by one, their interval is too narrow.
    """
    finite = np.isfinite(values)
    _, item = np.unique(items[finite], return_inverse=True)
    sums, counts = np.bincount(item, values[finite]), np.bincount(item)
    weights = bootstrap_weights(len(counts), resamples=resamples, seed=seed)[1:]
    return (weights @ sums) / (weights @ counts)


def bootstrap_medians(
    values: Float[np.ndarray, "example group"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "resample group"]:
    """Medians per group over examples drawn with replacement; all values must be finite."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return np.stack([np.median(column[drawn], axis=1) for column in values.T], axis=1)


def interval(draws: Float[np.ndarray, "draw *group"]) -> Float[np.ndarray, "2 *group"]:
    """The ends of the 95 % percentile interval per group; draws that are NaN are ignored."""
    draws = np.asarray(draws, dtype=float)
    ends = np.full((2, *draws.shape[1:]), np.nan)
    some = np.isfinite(draws).any(0)
    if draws.size and some.any():
        ends[:, some] = np.nanpercentile(draws[:, some], PERCENTILES, axis=0)
    return ends


def wilson(successes: float | int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; unlike a bootstrap interval it has a width at 0 and 1."""
    if not n:
        return np.nan, np.nan
    share = successes / n
    middle, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
    spread = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float((middle - spread) / scale)), min(1.0, float((middle + spread) / scale))


def clustered_interval(
    values: Float[np.ndarray, " example"],
    items: Int[np.ndarray, " example"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The ends of a 95 % interval of the mean over examples, of which some may share an item.

    Where every item is all right or all wrong (1 or 0) it is Wilson's over items: a bootstrap of
    four right answers would end at 100 and 100 %. Otherwise it is that of a cluster bootstrap; NaN
    for a single item.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return _NONE
    _, item = np.unique(items[finite], return_inverse=True)
    means = np.bincount(item, values[finite]) / np.bincount(item)
    if np.isin(values[finite], (0, 1)).all() and np.isin(means, (0, 1)).all():
        # Items weigh as much as their examples; where all agree, only their number matters.
        return wilson(float(values[finite].mean()) * len(means), len(means))
    if len(means) < FEWEST_ITEMS:
        return _NONE
    drawn = bootstrap_item_means(values, items, resamples=resamples, seed=seed)
    low, high = interval(drawn).tolist()
    return low, high


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p-values after Holm's correction for their number (family-wise error)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    found = np.empty(len(p_values))
    found[order] = raised
    return found


def spearman(one: Float[np.ndarray, " item"], other: Float[np.ndarray, " item"]) -> float:
    """Rank correlation with tied ranks averaged; NaN for fewer than 3 items or no spread."""
    if len(one) < FEWEST_RANKS or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    ranks = [np.asarray(pd.Series(values).rank(), float) for values in (one, other)]
    return float(np.corrcoef(np.stack(ranks))[0, 1])


@dataclass(frozen=True, eq=False)
class Roc:
    """ROC-AUC, best threshold and its open rates, one per draw of weights.

    Attributes:
        auc: probability that a positive has the larger value, ties counting half (Mann-Whitney).
        threshold: the cut with the largest true minus false positive rate (Youden), half way to
            the next smaller value.
        rates: true and false positive rate in each draw at the threshold of the first draw.
    """

    auc: Float[np.ndarray, " draw"]
    threshold: Float[np.ndarray, " draw"]
    rates: Float[np.ndarray, "draw 2"]


def roc(
    value: Float[np.ndarray, " item"],
    positive: Bool[np.ndarray, " item"],
    weights: Float[np.ndarray, "draw item"] | None = None,
) -> Roc:
    """ROC statistics of weighted items; NaN where one side has no weight.

    Args:
        value: the score of each item; larger means positive.
        positive: which items are positives.
        weights: whole numbers, such as `bootstrap_weights`: sums of them are exact, so equally good
            thresholds are equal. By default every item counts once, in a single draw.
    """
    weights = np.ones((1, len(value))) if weights is None else weights
    levels, level = np.unique(value, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    cuts = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2])
    parts, first = [], -1
    for start in range(0, len(weights), DRAWS_PER_CHUNK):
        mass = weights[start : start + DRAWS_PER_CHUNK, order].T
        sides = [mass * side[order, None] for side in (positive, ~positive)]
        if len(levels) < len(value):
            sides = [np.add.reduceat(side, starts, axis=0) for side in sides]
        auc, best = _sweep(*sides)
        first = int(best[0]) if start == 0 else first
        with np.errstate(invalid="ignore"):
            rates = np.stack([s[first:].sum(0) / s.sum(0) for s in sides], axis=1).astype(float)
        parts.append((auc, cuts[best], rates))
    return Roc(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def auc(positive: Float[np.ndarray, " pos"], negative: Float[np.ndarray, " neg"]) -> float:
    """Probability that a positive is larger than a negative, ties counting half; NaN if empty."""
    if not (len(positive) and len(negative)):
        return float("nan")
    is_positive = np.arange(len(positive) + len(negative)) < len(positive)
    return float(roc(np.concatenate([positive, negative]).astype(float), is_positive).auc[0])


def _sweep(
    pos: Float[np.ndarray, "level draw"], neg: Float[np.ndarray, "level draw"]
) -> tuple[Float[np.ndarray, " draw"], Int[np.ndarray, " draw"]]:
    """AUC and the best level to open at, from the weight of positives and negatives per level."""
    below_pos, below_neg = (side.cumsum(0) - side for side in (pos, neg))
    num_pos, num_neg = (side.sum(0, dtype=float) for side in (pos, neg))
    # Of equally good levels the highest is taken: it opens for the fewest negatives.
    loss = below_pos * num_neg - below_neg * num_pos
    best = len(loss) - 1 - loss[::-1].argmin(0)
    larger = np.einsum("ld,ld->d", pos, below_neg + neg / 2, dtype=float)
    with np.errstate(invalid="ignore"):
        return larger / (num_pos * num_neg), best
