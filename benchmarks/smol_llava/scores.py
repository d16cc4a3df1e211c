"""Scores and curves of the measured pieces, with intervals."""

import math
from typing import Any

import numpy as np

from attrib.stats import bootstrap_means, interval
from benchmarks.smol_llava.pieces import Pieces


def shares(pieces: Pieces) -> dict[str, tuple[float, int]]:
    """The scores of the card, each with its number of cases."""
    hits, kinds = pieces.column("vqa", "hit"), pieces.column("vqa", "kind")
    found = {"vqa": hits, "vqa, other picture": pieces.column("other", "hit")}
    for kind in dict.fromkeys(kinds):
        found[f"vqa/{kind}"] = [h for h, k in zip(hits, kinds, strict=True) if k == kind]
    found["captions, tokens"] = pieces.column("caption", "tokens")
    found["captions, exact"] = pieces.column("caption", "exact")
    found["facts"] = pieces.column("fact", "hit")
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


def text_scores(pieces: Pieces, part: str, seed: int = 0) -> dict[str, Any]:
    """How text answers agree with SmolLM2's; intervals are 95 % bootstrap ones over questions."""
    known = pieces.column(part, "known")
    still = [s for s, k in zip(pieces.column(part, "still"), known, strict=True) if k]
    scores: dict[str, Any] = {"questions": len(known), "known": len(still), "still": sum(still)}
    for name in ("agree", "same", "kl"):
        scores[name] = _mean(np.array(pieces.column(part, name), float)[:, None], seed)[0]
    return scores


def layer_scores(pieces: Pieces, seed: int = 0) -> dict[str, list[dict[str, float]]]:
    """Each curve: per layer the mean over questions, its 95 % bootstrap interval, the count."""
    names = next(iter(pieces.found["layers"].values()))
    return {name: _mean(np.array(pieces.column("layers", name), float), seed) for name in names}


def _mean(values: np.ndarray, seed: int) -> list[dict[str, float]]:
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        return [{"mean": math.nan, "low": math.nan, "high": math.nan, "count": 0}]
    low, high = interval(bootstrap_means(values, seed=seed))
    rows = zip(values.mean(0), low, high, strict=True)
    return [
        {"mean": round(float(m), 4), "low": round(float(a), 4), "high": round(float(b), 4),
         "count": len(values)} for m, a, b in rows
    ]  # fmt: skip
