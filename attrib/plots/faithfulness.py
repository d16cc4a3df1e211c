"""Curves over the layers: how well each kind of map points at the object asked about."""

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attrib.plots.curves import Series, draw_curve, finish
from attrib.plots.drawing import BLUE, GREY, INK, MUTED, VERMILION, new_axes, style
from attrib.results import Result

LOOKS = {
    "heatmap": (BLUE, "o", "-"), "attention": (VERMILION, "s", "--"), "gradient": (INK, "^", "-."),
}  # fmt: skip
OTHER = (GREY, "D", ":")
TITLES = {
    "hit": "Hottest patch on the object asked about",
    "auc": "Patches of the object against all others (ROC-AUC)",
    "auc_objects": "Patches of the object against other objects (ROC-AUC)",
}


def faithfulness(
    result: Result, statistic: Literal["hit", "auc", "auc_objects"], ax: Axes | None = None
) -> Axes:
    """One curve per kind of map, and a thin line for chance."""
    means = result.where(statistic=statistic).mean(["method", "layer"])
    with style():
        ax = new_axes(5.4, 3.6) if ax is None else ax
        ax.axhline(chance(result, statistic), color=MUTED, linewidth=0.8, label="chance")
        for method in dict.fromkeys(result.frame["method"]):
            look = LOOKS.get(str(method), OTHER)
            rows = pd.DataFrame(means[means["method"] == method])
            draw_curve(ax, Series(str(method), {}, *look), rows)
        finish(ax, TITLES[statistic], 2)
        ax.set_ylim(bottom=0 if statistic == "hit" else None)
    return ax


def chance(result: Result, statistic: str) -> float:
    """What a map that knows nothing gets: the object's share of the patches, or a half."""
    if statistic != "hit":
        return 0.5
    return float(np.nanmean(np.asarray(result.where(statistic="chance").frame["value"], float)))
