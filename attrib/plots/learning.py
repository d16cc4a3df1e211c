"""Learning curves of several editors, one above the other."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from attrib.plots.drawing import BLUE, GREY, VERMILION, new_figure, style

SHOWN = (
    ("request", "the request", BLUE, "o", "-"),
    ("text_generality", "in other words", VERMILION, "^", "--"),
    ("visual_locality", "unrelated images, ungated", GREY, "x", ":"),
)


def learning(curves: pd.DataFrame) -> Axes:
    """What held-out edits got right as training went on: a panel per editor, a line per seed.

    Args:
        curves: One row per editor, seed, step and name ("request", "text_generality",
            "visual_locality" are drawn), with a value from 0 to 1.
    """
    editors = list(dict.fromkeys(curves["editor"]))
    with style():
        figure = new_figure(5.4, 1.0 + 1.3 * len(editors))
        panels = figure.subplots(len(editors), 1, squeeze=False)[:, 0]
        for panel, editor in zip(panels, editors, strict=True):
            _draw(panel, pd.DataFrame(curves[curves["editor"] == editor]), str(editor))
        panels[-1].set_xlabel("step")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), fontsize=9)
    return panels[0]


def _draw(ax: Axes, rows: pd.DataFrame, title: str) -> None:
    for name, label, color, marker, line in SHOWN:
        some = rows[rows["name"] == name]
        for number, (_, one) in enumerate(some.groupby("seed")):
            ax.plot(
                one["step"],
                one["value"],
                color=color,
                linestyle=line,
                linewidth=1.4,
                marker=marker,
                markersize=3.5,
                label=label if number == 0 else "_nolegend_",
            )
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title(title)
