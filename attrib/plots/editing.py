"""Figures about editors: learning curves, and grids of scores over edited layers."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from attrib.plots.drawing import AXES, BLUE, GREY, VERMILION, new_figure, style

CURVES = {
    "request": ("the request", BLUE, "o", "-"),
    "text_generality": ("rephrased", VERMILION, "^", "--"),
    "visual_locality": ("unrelated images, ungated", GREY, "x", ":"),
}
HATCH = "///"  # of cells without a score


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


def score_grid(
    ax: Axes, values: Float[np.ndarray, "row col"], *, colors: str, label: str, missing: str
) -> None:
    """Draw scores as coloured cells with numbers, the first row at the bottom.

    The centre of the cell (row, col) is at (col + 0.5, row + 0.5).

    Args:
        ax: Axes to draw on.
        values: The scores; NaN cells are hatched.
        colors: Name of a colour map.
        label: Label of the colour bar.
        missing: Colour of the hatching.
    """
    import seaborn  # slow to import, and needed here only

    bar: dict[str, Any] = {"label": label, "shrink": 0.8}
    seaborn.heatmap(values, ax=ax, mask=np.isnan(values), annot=True, fmt=".1f", cmap=colors,
                    annot_kws={"fontsize": 7.5, "va": "top"}, cbar_kws=bar)  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(rotation=0)
    ax.grid(visible=False)
    ax.patch.set(hatch=HATCH, edgecolor=missing)


def missing_in_legend(ax: Axes, color: str, label: str) -> None:
    """Add an entry for hatched cells to the legend."""
    ax.fill([], [], fill=False, hatch=HATCH, edgecolor=color, linewidth=0, label=label)
