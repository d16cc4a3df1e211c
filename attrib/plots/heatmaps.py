"""Pictures of the tables that `attrib heatmap` makes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from PIL import Image

from attrib.plots.curves import Series, draw_curve, finish
from attrib.plots.drawing import BLUE, new_axes, style
from attrib.plots.overlay import overlay, query_bars
from attrib.results import Result

MOST_LAYERS = 15  # that a picture shows, if the table has more
THROUGH = "queries' heat, handed to patches by the Q-Former's cross-attention"


def heatmap_by_layer(result: Result, ax: Axes | None = None) -> Axes:
    """Mean heat of a visual token over the layers, with its interval."""
    means = result.mean(["layer"])
    with style():
        ax = new_axes() if ax is None else ax
        draw_curve(ax, Series("mean over visual tokens", {}, BLUE, "o"), means)
        finish(ax, "Heat of a visual token", 1)
        ax.set_ylim(bottom=0)
    return ax


def heatmap_pictures(
    image: Image.Image,
    tokens: pd.DataFrame,
    patches: pd.DataFrame | None,
    grid: "pd.Series",
    *,
    title: str = "",
) -> dict[str, Axes]:
    """Pictures of one example, by kind: "heatmap"; with a Q-Former "queries" and "picture".

    Args:
        image: of the example.
        tokens: its rows of the table "heatmap".
        patches: its rows of the table "picture", where there is one.
        grid: its row of the table "grids".
        title: such as the prompt.
    """
    layers = _shown(sorted(set(tokens["layer"])))
    if patches is not None:
        bars = query_bars(_cells(tokens, layers), layers, title=title, note="heat of each query")
        return {"queries": bars, "picture": _laid(image, patches, layers, grid, title, THROUGH)}
    if int(np.asarray(grid["rows"])) == 0:
        note = "heat of each visual token, in reading order"
        return {"heatmap": query_bars(_cells(tokens, layers), layers, title=title, note=note)}
    return {"heatmap": _laid(image, tokens, layers, grid, title, "")}


def _laid(
    image: Image.Image, table: pd.DataFrame, layers: Sequence[int], grid: "pd.Series", title: str,
    note: str,
) -> Axes:  # fmt: skip
    cells = _cells(pd.DataFrame(table[table["row"] >= 0]), layers)
    maps = cells.reshape(len(layers), *(int(np.asarray(grid[axis])) for axis in ("rows", "cols")))
    left, top, right, bottom = (
        float(np.asarray(grid[side])) for side in ("left", "top", "right", "bottom")
    )
    return overlay(image, maps, layers, (left, top, right, bottom), title=title, note=note)


def _cells(table: pd.DataFrame, layers: Sequence[int]) -> Float[np.ndarray, "layer cell"]:
    rows = [np.asarray(table.loc[table["layer"] == layer, "value"], float) for layer in layers]
    return np.stack(rows)


def _shown(layers: Sequence[int]) -> list[int]:
    """All layers, or as many as fit, evenly spread from the first to the last."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    picked = np.linspace(0, len(layers) - 1, MOST_LAYERS).round().astype(int)
    return [layers[i] for i in picked]
