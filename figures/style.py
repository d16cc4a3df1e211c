"""The styles of figures: one for all readers, one like the papers.

In both, series differ by marker and line style as well as by colour.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attrib.plots.overlay import HEATMAP_COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PLACES = 4  # decimals of positions, as shares of the drawing: finer than a pixel
# Colours by meaning. "default" uses the colour-blind safe palette of Okabe and Ito.
_SAFE = {
    "text": "#c65100", "visual": "#0072b2", "both": "#00795c", "bos": "#6b7178",
    "attention": "#0072b2", "mlp": "#c65100",
    "good": "#0072b2", "bad": "#c65100", "neutral": "#6b7178",
    "ink": "#22282e", "muted": "#5b6570", "grid": "#d9dee3",
}  # fmt: skip
_PAPERS = _SAFE | {
    "text": "#d62728", "visual": "#1f77b4", "both": "#9467bd",
    "attention": "#2ca02c", "mlp": "#d62728",
    "good": "#2ca02c", "bad": "#d62728",
    "ink": "#000000", "muted": "#333333",
}  # fmt: skip
_BOXED = {
    "font.family": "serif",
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.edgecolor": "#000000",
    "axes.labelcolor": "#000000",
    "text.color": "#000000",
    "xtick.color": "#000000",
    "ytick.color": "#000000",
    "axes.titleweight": "normal",
    "axes.titlelocation": "center",
    "axes.grid.axis": "both",
    "legend.frameon": True,
}


@dataclass(frozen=True)
class Style:
    """The look of figures.

    Attributes:
        name: Name on the command line.
        colors: Colours by meaning: text, visual, both, bos; attention, mlp; good, bad, neutral;
            ink, muted, grid.
        cycle: Further colours that are easy to tell apart.
        sequence: Name of a matplotlib colour map for amounts.
        heat: Name of the colour map of heatmaps over an image.
        hot: The colour of high values in a heatmap, in words.
        markers: Markers in the order of `cycle`.
        lines: Line styles in the order of `cycle`.
        settings: matplotlib settings that differ from those of `attrib.plots`.
    """

    name: str
    colors: Mapping[str, str]
    cycle: tuple[str, ...]
    sequence: str
    heat: str
    hot: str
    markers: tuple[str, ...] = ("o", "s", "^", "D", "v", "P", "X", "*")
    lines: tuple[str, ...] = ("-", "--", "-.", ":", "-", "--", "-.", ":")
    settings: Mapping[Any, Any] = field(default_factory=dict)


DEFAULT = Style(
    "default",
    _SAFE,
    ("#0072b2", "#c65100", "#00795c", "#8f4f9f", "#946200", "#22282e", "#56b4e9", "#6b7178"),
    sequence="cividis",
    heat=HEATMAP_COLORS,
    hot="yellow",
)
PAPER = Style(
    "paper",
    _PAPERS,
    ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"),
    sequence="viridis",
    heat="jet",
    hot="red",
    settings=_BOXED,
)
STYLES = {style.name: style for style in (DEFAULT, PAPER)}


@contextmanager
def applied(style: Style) -> Iterator[None]:
    """Draw and save in a style, with text as text and ids that depend on the content alone."""
    from attrib.plots.drawing import look

    with look(style.settings):
        yield


def freeze_layout(drawing: "Drawing") -> "Drawing":
    """Lay out the drawing once, round the positions of its axes, and turn the layout engine off.

    The last bits of matplotlib's layout solver depend on what was drawn before, and they would
    reach the file through the names of clip paths.
    """
    if engine := drawing.get_layout_engine():
        engine.execute(drawing)
        engine.execute(drawing)  # again: tick labels have their final size now
    drawing.set_layout_engine("none")
    for ax in drawing.axes:
        left, bottom, width, height = ax.get_position(original=True).bounds
        ax.set_position(
            (
                round(left, PLACES),
                round(bottom, PLACES),
                round(width, PLACES),
                round(height, PLACES),
            )
        )
    return drawing
