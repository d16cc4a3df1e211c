"""Whose answer comes out when another image's states are put into a layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attrib.plots.curves import Series, draw_curve, finish
from attrib.plots.drawing import BLUE, GREEN, GREY, INK, MUTED, VERMILION, new_axes, style
from attrib.results import Result
from attrib.stats import RESAMPLES

LOOKS = {
    "visual": (BLUE, "o"),
    "last": (VERMILION, "s"),
    "text": (GREEN, "^"),
    "all": (INK, "D"),
}
NAMES = {
    "visual": "visual tokens",
    "last": "last prompt token",
    "text": "words",
    "all": "whole prompt",
}


def patching(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Shares of the pairs in which the other's and the own answer comes out, per patched layer.

    One span also shows how often a third answer comes out; of several, the own answers are without
    a band.
    """
    spans = _spans(result)
    alone = NAMES[spans[0]] if len(spans) == 1 else ""
    with style():
        ax = new_axes(5.6, 3.8) if ax is None else ax
        for span in spans:
            for statistic, one in _shares(span, alone=bool(alone)).items():
                rows = result.where(span=span, statistic=statistic).mean(["layer"])
                if one.hollow and not alone:
                    rows = rows.assign(low=np.nan, high=np.nan)
                draw_curve(ax, one, rows)
        finish(ax, title or f"Whose answer comes out? {alone.capitalize()}".strip(), 2)
        ax.set_xlabel("layer whose output is patched")
        ax.set_ylabel("share of the pairs")
        ax.set_ylim(-0.02, 1.02)
    return ax


def patching_difference(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Median over the pairs of the normalised logit difference, per patched layer.

    The median, because a pair whose two runs hardly differ can have any difference.
    """
    with style():
        ax = new_axes(5.6, 3.5) if ax is None else ax
        for height in (0, 1):
            ax.axhline(height, color=MUTED, linewidth=0.8)
        for span in _spans(result):
            color, marker = LOOKS[span]
            one = Series(NAMES[span], {}, color, marker)
            draw_curve(ax, one, _medians(result.where(span=span, statistic="difference")))
        finish(ax, title or "How far the logits go over", len(_spans(result)))
        ax.set_xlabel("layer whose output is patched")
        ax.set_ylabel("0: own run, 1: the other's")
    return ax


def _shares(span: str, *, alone: bool) -> dict[str, Series]:
    color, marker = LOOKS[span]
    name = "" if alone else f"{NAMES[span]}: "
    third = {"neither": Series("a third answer", {}, GREY, "x", ":")} if alone else {}
    return {
        "follows": Series(f"{name}other's answer", {}, color, marker),
        "stays": Series(f"{name}own answer", {}, color, marker, "--", hollow=True),
    } | third


def _spans(result: Result) -> list[str]:
    there = set(result.frame["span"])
    return [span for span in LOOKS if span in there]


def _medians(result: Result) -> pd.DataFrame:
    """Median over examples per layer, with a 95 % bootstrap interval over examples."""
    groups, values = result.matrix(["layer"])
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return groups.assign(mean=np.nan, low=np.nan, high=np.nan)
    ends = np.full((2, len(groups)), np.nan)
    if len(values) > 1:
        rng = np.random.default_rng(result.seed)
        draws = rng.integers(len(values), size=(RESAMPLES, len(values)))
        medians = np.stack([np.median(column[draws], axis=1) for column in values.T])
        ends = np.percentile(medians, [2.5, 97.5], axis=1)
    return groups.assign(mean=np.median(values, axis=0), low=ends[0], high=ends[1])
