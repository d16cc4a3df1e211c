"""Curves of the interventions: noise in a layer, and another image's states in a layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attrib.plots.curves import Series, draw_curve, draw_series, finish
from attrib.plots.drawing import BLUE, GREEN, GREY, INK, MUTED, VERMILION, new_axes, style
from attrib.results import Result
from attrib.stats import bootstrap_medians, interval

# From small to large noise: dark to bright in equal steps, also for colour-blind readers.
SHADES = ("#3b049a", "#7e03a8", "#b12a90", "#d35171", "#e97257")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NOISE_ON = {"text": "text tokens", "visual": "visual tokens", "both": "text and visual tokens"}
SPANS = {
    "visual": ("visual tokens", BLUE, "o"),
    "last": ("last prompt token", VERMILION, "s"),
    "text": ("text tokens", GREEN, "^"),
    "all": ("whole prompt", INK, "D"),
}
ANSWERS = ("follows", "stays", "neither")


def sensitivity(
    result: Result, ax: Axes | None = None, *, log: bool = False, title: str = ""
) -> Axes:
    """Mean KL divergence of the output in nats over the perturbed layer, one curve per sigma.

    Args:
        result: a sweep over one modality.
        ax: where to draw.
        log: use a logarithmic scale, for effects over powers of ten; zeros are not shown.
        title: by default modality and unit.
    """
    means = result.mean(["layer", "sigma"])
    sigmas = sorted(set(means["sigma"]))
    steps = np.linspace(0, len(SHADES) - 1, len(sigmas)).round().astype(int)
    shades = [SHADES[i] for i in steps] if len(sigmas) > 1 else SHADES[-1:]
    series = [
        Series(f"σ = {sigma:g}", {"sigma": sigma}, shade, MARKERS[i % len(MARKERS)])  # noqa: RUF001
        for i, (sigma, shade) in enumerate(zip(sigmas, shades, strict=True))
    ]
    ax = draw_series(means, series, ax, title or _noise_title(result))
    ax.set_ylabel("KL divergence, nats")
    # Beside the axes and in the order of the curves, largest noise on top.
    handles, labels = ax.get_legend_handles_labels()
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    ax.legend(handles[::-1], labels[::-1], fontsize=9, **beside)
    if log:
        ax.set_yscale("log", nonpositive="mask")
    else:
        ax.set_ylim(bottom=0)
    return ax


def patching(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Share of the pairs whose answer follows the other image, or stays, over the patched layer.

    With a single span, a third curve is the share of other answers; with several, the curves of
    the own answer have no band.
    """
    spans = [span for span in SPANS if span in set(result.frame["span"])]
    table = pd.concat(
        result.where(statistic=name).shares(["span", "statistic", "layer"]) for name in ANSWERS
    )
    if len(spans) > 1:
        table.loc[table["statistic"] == "stays", ["low", "high"]] = np.nan
    series = [one for span in spans for one in _answers(span, alone=len(spans) == 1)]
    name = f": {SPANS[spans[0]][0]}" if len(spans) == 1 else ""
    ax = draw_series(
        table, series, ax, title or f"Answer after patching{name}", size=(5.6, 3.8), columns=2
    )
    ax.set_xlabel("patched layer (output)")
    ax.set_ylabel("share of the pairs")
    ax.set_ylim(-0.02, 1.02)
    return ax


def patching_difference(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Median over the pairs of the normalised logit difference, over the patched layer.

    The median, since a pair whose two runs hardly differ can have any difference.
    """
    spans = [span for span in SPANS if span in set(result.frame["span"])]
    with style():
        ax = new_axes(5.6, 3.5) if ax is None else ax
        for height in (0, 1):
            ax.axhline(height, color=MUTED, linewidth=0.8)
        for span in spans:
            label, color, marker = SPANS[span]
            rows = _medians(result.where(span=span, statistic="difference"))
            draw_curve(ax, Series(label, {}, color, marker), rows)
        finish(ax, title or "Logit difference after patching", len(spans))
        ax.set_xlabel("patched layer (output)")
        ax.set_ylabel("0: own run, 1: other run")
    return ax


def _noise_title(result: Result) -> str:
    (modality,) = set(result.frame["modality"])
    relative = result.provenance.get("options", {}).get("unit") == "std"
    return f"Noise on {NOISE_ON[modality]}{' (σ in std)' if relative else ''}"  # noqa: RUF001


def _answers(span: str, *, alone: bool) -> list[Series]:
    label, color, marker = SPANS[span]
    name = "" if alone else f"{label}: "

    def rows(statistic: str) -> dict[str, str]:
        return {"span": span, "statistic": statistic}

    third = [Series("a third answer", rows("neither"), GREY, "x", ":")] if alone else []
    return [
        Series(f"{name}other's answer", rows("follows"), color, marker),
        Series(f"{name}own answer", rows("stays"), color, marker, "--", hollow=True),
        *third,
    ]


def _medians(result: Result) -> pd.DataFrame:
    """Median over examples per layer, with a 95 % bootstrap interval over examples."""
    groups, values = result.matrix(["layer"])
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return groups.assign(mean=np.nan, low=np.nan, high=np.nan)
    ends = np.full((2, len(groups)), np.nan)
    if len(values) > 1:
        ends = interval(bootstrap_medians(values, seed=result.seed))
    return groups.assign(mean=np.median(values, axis=0), low=ends[0], high=ends[1])
