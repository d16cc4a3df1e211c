"""The looks of figures: one for every reader, one like the papers.

In both, series differ by marker and line as well as by colour.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Colours by what they stand for. "Default" are the colour-blind safe ones of Okabe and Ito.
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
    """How figures look.

    Attributes:
        name: as the command line has it.
        colors: by what they stand for: text, visual, both, bos; attention, mlp; good, bad,
            neutral; ink, muted, grid.
        cycle: further colours that can be told apart.
        markers: to go with `cycle`, in step.
        lines: to go with `cycle`, in step.
        sequence: matplotlib's name of a colour map for amounts.
        diverging: for signed numbers around zero.
        heat: for heat over an image.
        hot: the colour of much heat, in words.
        settings: of matplotlib, changed from the look of `attrib.plots`.
    """

    name: str
    colors: Mapping[str, str]
    cycle: tuple[str, ...]
    sequence: str
    diverging: str
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
    diverging="RdBu_r",
    heat="cividis",
    hot="yellow",
)
PAPER = Style(
    "paper",
    _PAPERS,
    ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"),
    sequence="viridis",
    diverging="RdBu_r",
    heat="jet",
    hot="red",
    settings=_BOXED,
)
STYLES = {style.name: style for style in (DEFAULT, PAPER)}


@contextmanager
def applied(style: Style) -> Iterator[None]:
    """Draw and write in a style: fixed ids, text that stays text, and the style's own settings."""
    from attrib.plots.drawing import look

    with look(style.settings):
        yield
