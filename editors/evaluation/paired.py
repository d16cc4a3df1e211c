"""Paired differences between editors on the same edits: a bootstrap over what repeats, and seeds.

Edits that share a fact or an image are drawn together, with all their scores by both editors; of an
editor with several seeds the seeds are drawn as well. p-values are corrected for the number of
comparisons by Holm's method.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.errors import AttribError
from attrib.results import Result
from attrib.stats import RESAMPLES, bootstrap_weights, holm, interval
from editors.evaluation.scoring import COST, UNEDITED

Named = tuple[str, str]  # editor and gate
NAMES = ("editor", "gate", "other", "other_gate")
METRICS = ("avg", "rel", "t_gen", "v_gen", "t_loc", "m_loc")


def differences(
    results: Sequence[Result],
    *,
    metrics: Sequence[str] = METRICS,
    against: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Differences of editors' mean scores on the edits that both were scored on.

    Args:
        results: Scores; those of one editor and gate are its seeds.
        metrics: The metrics to compare.
        against: Compare each editor with this one alone; by default all pairs.
        resamples: Number of draws.
        seed: Seed of the draws, which all comparisons share.

    Returns:
        A row per pair, protocol and metric: editor, gate, other, other_gate, protocol, metric,
        difference (of the first minus the other), low, high (95 %), p (two-sided), p_holm (over
        all rows), n (edits that all seeds of both were scored on) and items (clusters). Pairs
        without such an edit are left out; empty for fewer than two editors.

    Raises:
        AttribError: There is no editor `against`.
    """
    tables = _by_editor(results)
    pairs: list[tuple[Named, Named]] = list(combinations(tables, 2))
    if against is not None:
        if against not in {name for name, _ in tables}:
            raise AttribError(f"no editor {against!r} to compare with")
        base = [one for one in tables if one[0] == against]
        pairs = [(one, other) for other in base for one in tables if one[0] != against]
    rows = []
    for one, other in pairs:
        names = dict(zip(NAMES, (*one, *other), strict=True))
        scores, others = tables[one], tables[other]
        for key in scores:
            if key not in others or key[1] not in metrics:
                continue
            if found := _difference(scores[key], others[key], resamples, seed):
                rows.append({**names, "protocol": key[0], "metric": key[1], **found})
    table = pd.DataFrame(rows)
    return table if table.empty else table.assign(p_holm=holm(np.asarray(table["p"], float)))


def _by_editor(results: Sequence[Result]) -> dict[Named, dict[tuple[str, str], pd.DataFrame]]:
    """By editor, protocol and metric: scores, a row per edit and a column per seed, and items."""
    frames = [r.frame.assign(run=i) for i, r in enumerate(results)]
    scores = pd.concat(frames) if frames else pd.DataFrame()
    if scores.empty:
        return {}
    scores = scores[(scores["protocol"] != COST) & (scores["editor"] != UNEDITED)]
    found: dict[Named, dict[tuple[str, str], pd.DataFrame]] = {}
    by = ["editor", "gate", "protocol", "metric"]
    for key, part in scores.groupby(by, sort=False):
        editor, gate, protocol, metric = map(str, cast(tuple, key))
        wide = part.pivot_table("value", "example", "run", sort=False)
        item = part.groupby("example", sort=False)["item"].first() if "item" in part else wide.index
        found.setdefault((editor, gate), {})[protocol, metric] = wide.assign(item=item)
    return found


def _difference(
    one: pd.DataFrame, other: pd.DataFrame, resamples: int, seed: int
) -> dict[str, Any]:
    """The difference of two editors' means, with its interval and p-value; {} without shared edits.

    An edit counts where every seed has its score: seeds of other edits would differ by those.
    """
    one, other = (e.dropna(subset=[c for c in e if c != "item"]) for e in (one, other))
    shared = one.index.intersection(other.index)
    if shared.empty:
        return {}
    items, names = pd.factorize(one.loc[shared, "item"])
    weights = bootstrap_weights(len(names), resamples=resamples, seed=seed)[:, items]
    # The same seeds of both, since the runs of a seed share their gate and their training edits.
    mean, theirs = (
        _means(e.loc[shared], weights, np.random.default_rng([seed, 1])) for e in (one, other)
    )
    drawn = mean - theirs
    low, high = interval(drawn[1:]) if len(names) > 1 else (np.nan, np.nan)
    return {
        "difference": 100 * drawn[0], "low": 100 * low, "high": 100 * high,
        "p": _p_value(drawn[0], drawn[1:]), "n": len(shared), "items": len(names),
    }  # fmt: skip


def _p_value(difference: float, drawn: Float[np.ndarray, " draw"]) -> float:
    """Two-sided p-value: twice the share of draws on the far side of zero.

    Where no draw is there, the tail of a normal distribution with the draws' spread continues it: a
    thousand draws alone end at .002, which a correction for a hundred comparisons raises to .2.
    """
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    if beyond or not (spread := float(drawn.std())) > 0:
        return p
    return min(p, math.erfc(abs(difference) / spread / math.sqrt(2)))


def _means(
    scores: pd.DataFrame, weights: Float[np.ndarray, "draw example"], rng: np.random.Generator
) -> Float[np.ndarray, " draw"]:
    """Weighted means over edits and, in each draw but the first, over drawn seeds."""
    values = np.asarray(scores.drop(columns="item"), dtype=float)
    means = weights @ values / weights.sum(1, keepdims=True)
    seeds = rng.integers(values.shape[1], size=means.shape)
    seeds[0] = np.arange(values.shape[1])
    return np.take_along_axis(means, seeds, 1).mean(1)
