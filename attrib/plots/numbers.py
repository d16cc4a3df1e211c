"""A grid of cells with their numbers in them."""

from typing import Any

import numpy as np
import seaborn
from jaxtyping import Float
from matplotlib.axes import Axes

HATCH = "///"  # where there is no cell


def score_grid(
    ax: Axes, values: Float[np.ndarray, "row col"], *, colors: str, label: str, missing: str
) -> None:
    """Draw cells with their numbers, the first row at the bottom; NaN cells are hatched.

    The middle of the cell (row, col) is at (col + 0.5, row + 0.5).

    Args:
        ax: Where.
        values: The numbers.
        colors: Name of a colour map.
        label: Of the colour bar.
        missing: Colour of the hatching.
    """
    bar: dict[str, Any] = {"label": label, "shrink": 0.8}
    seaborn.heatmap(values, ax=ax, mask=np.isnan(values), annot=True, fmt=".1f", cmap=colors,
                    annot_kws={"fontsize": 7.5, "va": "top"}, cbar_kws=bar)  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(rotation=0)
    ax.grid(visible=False)
    ax.patch.set(hatch=HATCH, edgecolor=missing)


def missing_in_legend(ax: Axes, color: str, label: str) -> None:
    """An entry of the legend for hatched cells."""
    ax.fill([], [], fill=False, hatch=HATCH, edgecolor=color, linewidth=0, label=label)
