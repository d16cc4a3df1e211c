"""Areas under insertion and deletion curves, per method."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attrib.plots.drawing import BLUE, VERMILION, new_axes, style
from attrib.results import Result

LOOKS = {"deletion": (BLUE, "o", "deletion: less is better"),
         "insertion": (VERMILION, "s", "insertion: more is better")}  # fmt: skip


def deletion(result: Result, ax: Axes | None = None) -> Axes:
    """Both mean areas of each method with 95 % intervals; the random order is the control.

    Args:
        result: The table "deletion".
        ax: Where to draw.
    """
    table = result.mean(["method", "statistic"])
    methods = list(dict.fromkeys(map(str, result.frame["method"])))
    with style():
        ax = new_axes(5.4, 1.4 + 0.35 * len(methods)) if ax is None else ax
        for statistic, (color, marker, label) in LOOKS.items():
            rows = pd.DataFrame(table[table["statistic"] == statistic]).set_index("method")
            mean, low, high = (
                np.asarray(rows.loc[methods, name], float) for name in ("mean", "low", "high")
            )
            ax.errorbar(
                mean, np.arange(len(methods)), xerr=np.stack([mean - low, high - mean]),
                fmt=marker, color=color, label=label, markersize=5, capsize=2.5, linewidth=1.2,
            )  # fmt: skip
        ax.set_yticks(range(len(methods)), methods)
        ax.invert_yaxis()
        ax.set_xlim(0, 1)
        ax.set_xlabel("area under the probability of the answer")
        ax.set_title("Insertion and deletion")
        ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    return ax
