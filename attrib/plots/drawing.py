"""Figures as files and inside pages: one style, reproducible bytes, a text alternative."""

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
# CSS variables of the page's light or dark theme; the fallback is the colour itself.
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
    "svg.fonttype": "none",  # text stays text: searchable and small
    "svg.hashsalt": "attrib",  # ids depend on the content alone
    "pdf.fonttype": 42,  # TrueType
}
NOTEBOOK_DPI = 110
PRINT_DPI = 300  # of pixels in a PDF
_look: ContextVar[Mapping[RcKeyType, Any]] = ContextVar("look", default=STYLE)


class FigureAxes(Axes):
    """Axes that a notebook displays as their whole figure."""

    def _repr_png_(self) -> bytes:
        return figure_png(figure_of(self), dpi=NOTEBOOK_DPI)


AXES: dict[str, Any] = {"axes_class": FigureAxes}  # for add_subplot and as subplot_kw


def new_axes(width: float = 5.0, height: float = 3.2) -> Axes:
    """Axes in a new figure of the given size in inches, without pyplot's global state."""
    with style():
        return new_figure(width, height).add_subplot(**AXES)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches, with constrained layout."""
    return Figure(figsize=(width, height), layout="constrained")


def share_scale(*axes: Axes) -> None:
    """Set the same vertical limits on all axes."""
    bottoms, tops = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(bottoms), max(tops))


def describe(ax: Axes) -> str:
    """The text alternative of a figure: the axes' label, or the extremes of each curve."""
    if label := str(ax.get_label()):
        return label
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

    Args:
        ax: axes of the figure.
        target: "page" leaves out the XML head and takes colours from the page's theme.
        prefix: of all ids, so that several figures fit into one page.
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


def figure_svg(figure: Figure, title: str, description: str, *, transparent: bool = False) -> str:
    """A figure as SVG with a title and a text alternative."""
    text = io.StringIO()
    with style():
        figure.savefig(
            text,
            format="svg",
            transparent=transparent,
            metadata={"Date": None, "Creator": None, "Title": title},
        )
    drawing = _number_clips(text.getvalue())
    head = f"<title>{escape(title, quote=False)}</title>"
    assert head in drawing
    named = f"{head}\n <desc>{escape(description)}</desc>"
    return drawing.replace(head, named, 1).replace("<svg ", '<svg role="img" ', 1)


def _number_clips(drawing: str) -> str:
    """The same SVG with its clip paths numbered in order of use.

    Matplotlib names them by sizes to the last bit, in which two layouts of one figure differ.
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


def figure_pdf(figure: Figure, title: str) -> bytes:
    """A figure as PDF with its fonts as TrueType, which publishers ask for."""
    document = io.BytesIO()
    about = {"Title": title, "CreationDate": None, "Creator": None, "Producer": None}
    with style():
        figure.savefig(document, format="pdf", metadata=about, dpi=PRINT_DPI)
    return document.getvalue()


def save(ax: Axes, stem: str | Path) -> list[Path]:
    """Write the figure as `stem`.svg, .png and .pdf; return the paths."""
    drawing, figure = write_text(f"{stem}.svg", svg(ax)), figure_of(ax)
    files = {
        Path(f"{stem}.png"): figure_png(figure),
        Path(f"{stem}.pdf"): figure_pdf(figure, ax.get_title(loc="left") or "figure"),
    }
    for path, content in files.items():
        with atomic_write(path) as file:
            file.write(content)
    return [drawing, *files]


def figure_of(ax: Axes) -> Figure:
    """The figure that the axes belong to."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of this package, or the one set with `look`."""
    with matplotlib.rc_context(dict(_look.get())):
        yield


@contextmanager
def look(changes: Mapping[RcKeyType, Any]) -> Iterator[None]:
    """Change some of the package's matplotlib settings inside the block."""
    token = _look.set(STYLE | dict(changes))
    try:
        with style():
            yield
    finally:
        _look.reset(token)
