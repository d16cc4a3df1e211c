"""Figures as files and on pages: one look, fixed bytes, a description for who cannot see them."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from attrib.files import atomic_write, write_text

INK, MUTED, GRID = "#22282e", "#5b6570", "#d9dee3"
BLUE, VERMILION, GREY, GREEN = "#0072b2", "#c65100", "#6b7178", "#00795c"
# On a page, colours follow its light or dark theme; the fallback is the colour of the file.
THEME = {
    INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", VERMILION: "red", GREY: "grey",
    GREEN: "green",
}  # fmt: skip
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
_look: ContextVar[Mapping[RcKeyType, Any]] = ContextVar("look", default=STYLE)


def new_axes(width: float = 5.0, height: float = 3.2) -> Axes:
    """The axes of a figure of its own, in inches; no display and no global state needed."""
    with style():
        return new_figure(width, height).add_subplot()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, whose parts keep out of each other's way."""
    return Figure(figsize=(width, height), layout="constrained")


def share_scale(*axes: Axes) -> None:
    """Give figures that are read side by side the same vertical scale."""
    low, high = (f(ax.get_ylim()[end] for ax in axes) for f, end in ((min, 0), (max, 1)))
    for ax in axes:
        ax.set_ylim(low, high)


def describe(ax: Axes) -> str:
    """In words what the curves show, for readers who do not see them.

    Axes with something else than curves say themselves what it is, in their label.
    """
    if said := str(ax.get_label()):
        return said
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
    title = ax.get_title(loc="left") or "figure"
    drawing = figure_svg(figure_of(ax), title, describe(ax), transparent=target == "page")
    if target == "file":
        return drawing
    drawing = drawing[drawing.index("<svg ") :]
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    for color, name in THEME.items():
        drawing = drawing.replace(color, f"var(--{name}, {color})")
    drawing = re.sub(r'\bid="', f'id="{prefix}', drawing)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", drawing)


def figure_svg(figure: Figure, title: str, said: str, *, transparent: bool = False) -> str:
    """A figure as SVG, with its title and what it shows in words."""
    text = io.StringIO()
    with style():
        figure.savefig(
            text,
            format="svg",
            transparent=transparent,
            metadata={"Date": None, "Creator": None, "Title": title},
        )
    drawing = _count_clips(text.getvalue())
    head = f"<title>{escape(title, quote=False)}</title>"
    assert head in drawing
    named = f"{head}\n <desc>{escape(said)}</desc>"
    return drawing.replace(head, named, 1).replace("<svg ", '<svg role="img" ', 1)


def _count_clips(drawing: str) -> str:
    """The same SVG with its clip paths numbered as they are used.

    Their names come from sizes to the last bit, which the layout does not settle.
    """
    clips = dict.fromkeys(re.findall(r'"url\(#(p[0-9a-f]{10})\)"', drawing))
    for number, name in enumerate(clips):
        drawing = drawing.replace(name, f"clip{number}")
    return drawing


def figure_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """A figure as PNG."""
    image = io.BytesIO()
    with style():
        figure.savefig(image, format="png", dpi=dpi, metadata={"Software": None})
    return image.getvalue()


def save(ax: Axes, stem: str | Path) -> list[Path]:
    """Write the figure as `stem`.svg and `stem`.png; their paths."""
    drawing = write_text(f"{stem}.svg", svg(ax))
    with atomic_write(f"{stem}.png") as file:
        file.write(figure_png(figure_of(ax)))
    return [drawing, Path(f"{stem}.png")]


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are part of."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


@contextmanager
def style() -> Iterator[None]:
    """Draw in the look of this package, or in the one chosen with `look`."""
    with matplotlib.rc_context(dict(_look.get())):
        yield


@contextmanager
def look(changes: Mapping[RcKeyType, Any]) -> Iterator[None]:
    """Draw with some of matplotlib's settings changed from the look of this package."""
    token = _look.set(STYLE | dict(changes))
    try:
        with style():
            yield
    finally:
        _look.reset(token)
