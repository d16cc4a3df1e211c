"""Curves over the layers: means over examples with 95 % intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from attrib.errors import AttribError
from attrib.plots.drawing import (
    AXES,
    BLUE,
    GREY,
    INK,
    MUTED,
    VERMILION,
    new_axes,
    new_figure,
    style,
)
from attrib.results import Result


@dataclass(frozen=True)
class Series:
    """The look of one curve, and the rows of a table that it shows (column -> value)."""

    label: str
    rows: Mapping[str, object] = field(default_factory=dict)
    color: str = BLUE
    marker: str = "o"
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
MOST_CURVES = 5
MOST_IMAGES = 6  # of a prompt, with a curve each
METHODS = {
    "heatmap": (BLUE, "o", "-"), "attention": (VERMILION, "s", "--"), "gradient": (INK, "^", "-."),
}  # fmt: skip
OTHER_METHOD = (GREY, "D", ":")
FAITHFULNESS = {
    "hit": "Hottest patch on the queried object",
    "auc": "Patches of the object against all others (ROC-AUC)",
    "auc_objects": "Patches of the object against other objects (ROC-AUC)",
}


def contributions(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Mean contribution of each layer's attention and MLP."""
    table = result.mean(["layer", "module"])
    ax = draw_series(table, MODULES, ax, title or "Contribution to the key token")
    ax.axhline(0, color=MUTED, linewidth=0.8)
    return ax


def attention(
    result: Result,
    ax: Axes | None = None,
    *,
    quantity: Literal["token", "share"] = "token",
    title: str = "",
) -> Axes:
    """Attention of the last prompt token in each layer.

    `quantity` is the attention that a token of each kind receives on average, or the share that
    all tokens of a kind receive together; the shares of a layer sum to 1. Where prompts have
    several images, up to `MOST_IMAGES`, each has a curve of its own.
    """
    table = result.mean(["layer", "statistic"])
    per_token = quantity == "token"
    kinds, name = (PER_TOKEN, "visual_mean") if per_token else (SHARES, "visual_sum")
    there = set(map(str, table["statistic"]))
    own = [f"{name}[{i}]" for i in range(len(there)) if f"{name}[{i}]" in there]
    images = [
        Series(f"image {i + 1}", {"statistic": statistic}, BLUE, f"${i + 1}$", ":")
        for i, statistic in enumerate(own if len(own) <= MOST_IMAGES else [])
    ]
    title = title or ("Attention per token" if per_token else "Share of the attention")
    ax = draw_series(table, [*kinds, *images], ax, title, columns=len(kinds))
    ax.set_ylim(0, None if per_token else 1)
    return ax


def heatmap_by_layer(result: Result, ax: Axes | None = None) -> Axes:
    """Mean heatmap value of a visual token in each layer."""
    series = Series("mean over visual tokens")
    ax = draw_series(result.mean(["layer"]), [series], ax, "Heatmap value of a visual token")
    ax.set_ylim(bottom=0)
    return ax


def faithfulness(
    result: Result, statistic: Literal["hit", "auc", "auc_objects"] = "hit", ax: Axes | None = None
) -> Axes:
    """How well each kind of map points at the queried object; a thin line is chance."""
    rows, by = result.where(statistic=statistic), ["method", "layer"]
    methods = dict.fromkeys(map(str, result.frame["method"]))
    series = [Series(m, {"method": m}, *METHODS.get(m, OTHER_METHOD)) for m in methods]
    if statistic == "hit":
        values = result.where(statistic="chance").frame["value"]
        table, chance = rows.shares(by), float(np.nanmean(np.asarray(values, float)))
    else:
        table, chance = rows.mean(by), 0.5
    with style():
        ax = new_axes(5.4, 3.6) if ax is None else ax
        ax.axhline(chance, color=MUTED, linewidth=0.8, label="chance")
    draw_series(table, series, ax, FAITHFULNESS[statistic], columns=2)
    ax.set_ylim(bottom=0 if statistic == "hit" else None)
    return ax


def differences(table: pd.DataFrame, by: Sequence[str], ax: Axes | None = None) -> Axes:
    """Difference of two runs over the layers, a curve per group; 0 means no difference.

    Args:
        table: Columns `layer`, `difference`, `low`, `high` and those of `by`.
        by: The columns that make a curve; the first `MOST_CURVES` groups are drawn.
        ax: Where to draw.

    Raises:
        AttribError: The table has no layers.
    """
    if "layer" not in table:
        raise AttribError("the differences have no layers to draw them over")
    varied = [name for name in by if len(set(table[name])) > 1]
    every = pd.DataFrame(table[varied]).drop_duplicates().to_dict("records")
    groups, title = every[:MOST_CURVES], "Difference, first run - second run"
    if len(every) > MOST_CURVES:
        title += f" ({MOST_CURVES} of {len(every)} groups)"
    looks = zip(groups, (BLUE, VERMILION, INK, GREY, MUTED), "osDxv", strict=False)
    series = [
        Series(", ".join(f"{name} {value}" for name, value in rows.items()) or "difference",
               {str(name): value for name, value in rows.items()}, color, marker)
        for rows, color, marker in looks
    ]  # fmt: skip
    table = table.rename(columns={"difference": "mean"})
    ax = draw_series(table, series, ax, title, columns=2)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    return ax


def draw_series(
    table: pd.DataFrame,
    series: Sequence[Series],
    ax: Axes | None,
    title: str,
    *,
    size: tuple[float, float] = (5.0, 3.2),
    columns: int | None = None,
) -> Axes:
    """Draw one curve per series that has rows in the table.

    Args:
        table: columns `layer`, `mean`, `low`, `high` and those that the series select by.
        series: the curves, in the order of the legend.
        ax: where to draw; by default new axes of `size` inches.
        title: of the axes.
        size: width and height of new axes.
        columns: of the legend; by default one per series.
    """
    with style():
        ax = new_axes(*size) if ax is None else ax
        for one in series:
            chosen = np.ones(len(table), bool)
            for column, value in one.rows.items():
                chosen &= np.asarray(table[column] == value)
            if chosen.any():
                draw_curve(ax, one, pd.DataFrame(table.loc[chosen]))
        finish(ax, title, columns or len(series))
    return ax


def draw_curve(ax: Axes, one: Series, rows: pd.DataFrame) -> None:
    """Draw one curve with its band, from the columns `layer`, `mean`, `low` and `high`."""
    x, y, low, high = (np.asarray(rows[c], float) for c in ("layer", "mean", "low", "high"))
    ax.fill_between(x, low, high, color=one.color, alpha=0.2, linewidth=0)
    ax.plot(
        x, y, one.line, color=one.color, marker=one.marker, label=one.label, markersize=4.5,
        markerfacecolor="none" if one.hollow else one.color, linewidth=1.6,
    )  # fmt: skip


def finish(ax: Axes, title: str, columns: int) -> None:
    """Label axes over the layers; the legend is below them, in `columns` columns."""
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(title)
    if ax.get_legend_handles_labels()[0]:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": columns}
        ax.legend(fontsize=9, handlelength=2.5, columnspacing=1.4, **below)


CURVES = {
    "request": ("the request", BLUE, "o", "-"),
    "text_generality": ("rephrased", VERMILION, "^", "--"),
    "visual_locality": ("unrelated images, ungated", GREY, "x", ":"),
}


def learning(curves: pd.DataFrame) -> Axes:
    """Accuracy on held-out edits over training steps: a panel per editor, a line per seed.

    Args:
        curves: One row per editor, seed, step and name (the names in `CURVES` are drawn), with a
            value from 0 to 1.
    """
    editors = list(dict.fromkeys(curves["editor"]))
    with style():
        figure = new_figure(5.4, 1.0 + 1.3 * len(editors))
        panels = figure.subplots(len(editors), 1, squeeze=False, subplot_kw=AXES)[:, 0]
        for panel, editor in zip(panels, editors, strict=True):
            _draw(panel, pd.DataFrame(curves[curves["editor"] == editor]), str(editor))
        panels[-1].set_xlabel("step")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(CURVES), fontsize=9)
    return panels[0]


def _draw(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    for name, (label, color, marker, line) in CURVES.items():
        for number, (_, one) in enumerate(rows[rows["name"] == name].groupby("seed")):
            ax.plot(
                one["step"], one["value"], color=color, linestyle=line, linewidth=1.4,
                marker=marker, markersize=3.5, label="_nolegend_" if number else label,
            )  # fmt: skip
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title(title)
