"""Curves over the layers: the mean over examples, with its interval."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attrib.plots.drawing import BLUE, GREY, MUTED, VERMILION, new_axes, style
from attrib.results import Result


@dataclass(frozen=True)
class Series:
    """How one curve looks, and which rows of a result it shows."""

    label: str
    rows: dict[str, str]
    color: str
    marker: str
    line: str = "-"
    hollow: bool = False


MODULES = (
    Series("attention", {"module": "attn"}, BLUE, "o"),
    Series("MLP", {"module": "mlp"}, VERMILION, "s", "--"),
)
PER_TOKEN = (
    Series("text, mean", {"statistic": "text_mean"}, VERMILION, "^"),
    Series("visual, mean", {"statistic": "visual_mean"}, BLUE, "o"),
    Series("visual, top 3", {"statistic": "visual_top3"}, BLUE, "o", "--", hollow=True),
)
SHARES = (
    Series("all text", {"statistic": "text_sum"}, VERMILION, "^"),
    Series("all visual", {"statistic": "visual_sum"}, BLUE, "o"),
    Series("BOS", {"statistic": "bos"}, GREY, "x", ":"),
)


def contributions(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Mean contribution of each layer's attention and MLP, with the interval of the mean."""
    ax = draw_curves(result, MODULES, ax, title or "Contribution to the key token")
    ax.axhline(0, color=MUTED, linewidth=0.8)
    return ax


def attention(
    result: Result,
    ax: Axes | None = None,
    *,
    quantity: Literal["token", "share"] = "token",
    title: str = "",
) -> Axes:
    """What the last prompt token attends to in each layer.

    `quantity` is the attention one token gets on average, or the share that all tokens of a
    kind get together; the shares of a layer sum to 1.
    """
    if quantity == "token":
        ax = draw_curves(result, PER_TOKEN, ax, title or "Attention per token")
    else:
        ax = draw_curves(result, SHARES, ax, title or "Share of the attention")
        ax.set_ylim(0, 1)
    ax.set_ylim(bottom=0)
    return ax


def draw_curves(result: Result, series: tuple[Series, ...], ax: Axes | None, title: str) -> Axes:
    """One curve per series, over the layers."""
    (column,) = series[0].rows
    means = result.mean(["layer", column])
    with style():
        ax = new_axes() if ax is None else ax
        for one in series:
            draw_curve(ax, one, pd.DataFrame(means[means[column] == one.rows[column]]))
        finish(ax, title, len(series))
    return ax


def draw_curve(ax: Axes, one: Series, rows: pd.DataFrame) -> None:
    """One curve with its band: columns `layer`, `mean`, `low` and `high`."""
    x, y, low, high = (np.asarray(rows[c], float) for c in ("layer", "mean", "low", "high"))
    ax.fill_between(x, low, high, color=one.color, alpha=0.2, linewidth=0)
    face = "none" if one.hollow else one.color
    ax.plot(
        x,
        y,
        one.line,
        color=one.color,
        marker=one.marker,
        label=one.label,
        markerfacecolor=face,
        markersize=4.5,
        linewidth=1.6,
    )


def finish(ax: Axes, title: str, columns: int) -> None:
    """Axes over the layers, with a title, and a legend of so many columns."""
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    # Below the axes, where no curve runs.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": columns}
    ax.legend(fontsize=9, handlelength=2.5, columnspacing=1.4, **below)
