"""Curves of a sweep: how far noise in each layer moves the output, one curve a sigma."""

import numpy as np
from matplotlib.axes import Axes

from attrib.plots.curves import Series, draw_curves
from attrib.results import Result

# From little noise to much: dark to bright in equal steps, also for colour-blind readers.
SHADES = ("#3b049a", "#7e03a8", "#b12a90", "#d35171", "#e97257")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HIT = {"text": "text tokens", "visual": "visual tokens", "both": "text and visual tokens"}


def sensitivity(
    result: Result, ax: Axes | None = None, *, log: bool = False, title: str = ""
) -> Axes:
    """Mean divergence of the output in nats, over the layer that noise hits, with its interval.

    Args:
        result: of a sweep over one modality.
        ax: where to draw.
        log: a logarithmic scale, for effects that span powers of ten; zeros do not show.
        title: instead of one that names modality and unit.
    """
    sigmas = sorted(set(result.frame["sigma"]))
    named = result.frame.assign(noise=result.frame["sigma"].map(_label))
    series = tuple(
        Series(_label(sigma), {"noise": _label(sigma)}, _shade(i, len(sigmas)), MARKERS[i % 8])
        for i, sigma in enumerate(sigmas)
    )
    labelled = Result(result.analysis, named, result.provenance)
    ax = draw_curves(labelled, series, ax, title or _title(result))
    ax.set_ylabel("KL divergence, nats")
    # Beside the axes and in the order of the curves, most noise on top.
    handles, labels = ax.get_legend_handles_labels()
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    ax.legend(handles[::-1], labels[::-1], fontsize=9, **beside)
    if log:
        ax.set_yscale("log", nonpositive="mask")
    else:
        ax.set_ylim(bottom=0)
    return ax


def _label(sigma: float) -> str:
    return f"σ = {sigma:g}"  # noqa: RUF001


def _shade(i: int, num: int) -> str:
    """The color of the i-th of `num` sigmas; the last is always the brightest."""
    last = len(SHADES) - 1
    return SHADES[round(i * last / (num - 1)) if num > 1 else last]


def _title(result: Result) -> str:
    (modality,) = np.unique(np.asarray(result.frame["modality"], str))
    relative = result.provenance.get("options", {}).get("unit") == "std"
    unit = " (σ in std)" if relative else ""  # noqa: RUF001
    return f"Noise on {HIT[modality]}{unit}"
