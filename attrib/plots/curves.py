"""Pictures of results: a `Result` and an Axes in, the Axes out. The only file with matplotlib.

Series differ by colour (safe for colour-blind readers), by marker and by line style. A figure
written twice from one result is the same file, byte for byte.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

from attrib.files import replacing, write_text
from attrib.results import Result

INK, MUTED, GRID = "#22282e", "#5b6570", "#d9dee3"
BLUE, VERMILION, GREY = "#0072b2", "#c65100", "#6b7178"
# On a page, colours follow its light or dark theme; the fallback is the colour of the file.
THEME = {INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", VERMILION: "red", GREY: "grey"}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",  # Text stays text: searchable, small.
    "svg.hashsalt": "attrib",  # Ids come from the content, not from chance.
}


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


def new_axes(width: float = 5.0, height: float = 3.2) -> Axes:
    """The axes of a figure of its own, in inches; no display and no global state needed."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained").add_subplot()


def contributions(result: Result, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Mean contribution of each layer's attention and MLP, with the interval of the mean."""
    ax = _curves(result, MODULES, ax, title or "Contribution to the key token")
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
        ax = _curves(result, PER_TOKEN, ax, title or "Attention per token")
    else:
        ax = _curves(result, SHARES, ax, title or "Share of the attention")
        ax.set_ylim(0, 1)
    ax.set_ylim(bottom=0)
    return ax


def share_scale(*axes: Axes) -> None:
    """Give figures that are read side by side the same vertical scale."""
    low, high = (f(ax.get_ylim()[end] for ax in axes) for f, end in ((min, 0), (max, 1)))
    for ax in axes:
        ax.set_ylim(low, high)


def describe(ax: Axes) -> str:
    """In words what the curves show, for readers who do not see them."""
    parts = []
    for line in ax.get_lines():
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if len(y) and not str(line.get_label()).startswith("_") and np.isfinite(y).any():
            top = int(np.nanargmax(y))
            parts.append(
                f"{line.get_label()} is highest in layer {x[top]:.0f} ({y[top]:.3g}) and lowest "
                f"in layer {x[np.nanargmin(y)]:.0f} ({np.nanmin(y):.3g})"
            )
    return f"Line chart over {ax.get_xlabel()}: " + ("; ".join(parts) or "no values") + "."


def svg(ax: Axes, *, target: Literal["file", "page"] = "file", prefix: str = "") -> str:
    """The figure as SVG with a title and a description.

    For a page there is no XML head, colours follow the page's theme, and `prefix` keeps the
    ids of several figures apart.
    """
    text = io.StringIO()
    title = ax.get_title(loc="left") or "figure"
    with _style():
        _figure(ax).savefig(
            text,
            format="svg",
            transparent=target == "page",
            metadata={"Date": None, "Creator": None, "Title": title},
        )
    drawing = text.getvalue()
    head = f"<title>{escape(title, quote=False)}</title>"
    assert head in drawing
    named = f"{head}\n <desc>{escape(describe(ax))}</desc>"
    drawing = drawing.replace(head, named, 1).replace("<svg ", '<svg role="img" ', 1)
    if target == "file":
        return drawing
    drawing = drawing[drawing.index("<svg ") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    for color, name in THEME.items():
        drawing = drawing.replace(color, f"var(--{name}, {color})")
    drawing = re.sub(r'\bid="', f'id="{prefix}', drawing)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", drawing)


def save(ax: Axes, stem: str | Path) -> list[Path]:
    """Write the figure as `stem`.svg and `stem`.png; their paths."""
    image, drawing = (Path(f"{stem}.{kind}") for kind in ("png", "svg"))
    write_text(drawing, svg(ax))
    with _style(), replacing(image) as file:
        _figure(ax).savefig(file, format="png", dpi=200, metadata={"Software": None})
    return [drawing, image]


def _curves(result: Result, series: tuple[Series, ...], ax: Axes | None, title: str) -> Axes:
    (column,) = series[0].rows
    means = result.mean(["layer", column])
    with _style():
        ax = new_axes() if ax is None else ax
        for one in series:
            rows = pd.DataFrame(means[means[column] == one.rows[column]])
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
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(title)
        # Below the axes, where no curve runs.
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": len(series)}
        ax.legend(fontsize=9, handlelength=2.5, columnspacing=1.4, **below)
    return ax


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield
