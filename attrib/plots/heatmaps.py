"""Heatmaps of one example over its image: from `attrib.heatmaps`, or from a run's tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from PIL import Image

from attrib.plots.overlay import Box, Limits, overlay, token_bars

if TYPE_CHECKING:
    from attrib.model.batch import Grid

MOST_LAYERS = 15  # in one figure; of more, an even choice is shown
QFORMER = "query values distributed to patches by the Q-Former's cross-attention"
ORDER = "visual tokens in reading order"


def heatmaps(
    image: Image.Image,
    values: Float[np.ndarray, "layer visual"],
    grid: "Grid | None",
    *,
    layers: Sequence[int] | None = None,
    title: str = "",
) -> Axes:
    """One example's heatmaps over its image, or as bars where the visual tokens have no grid.

    Args:
        image: the image that the model saw.
        values: of the example, such as `attrib.heatmaps(vlm, batch)[0]`.
        grid: of the image, such as `batch.grids[0]`, or `batch.grids[0][1]` for the second of
            several images.
        layers: numbers of the layers; by default 0, 1, ...
        title: of the figure, such as the prompt.
    """
    layers = range(len(values)) if layers is None else layers
    cells = np.asarray(values, float)
    shown = _shown(range(len(layers)))
    layers, cells = [layers[i] for i in shown], cells[shown]
    if grid is None:
        return token_bars(cells[:, np.isfinite(cells).any(0)], layers, title=title, note=ORDER)
    inside = cells[:, grid.first : grid.first + grid.rows * grid.cols]
    maps = inside.reshape(len(layers), grid.rows, grid.cols)
    return overlay(image, maps, layers, grid.box, title=title)


def rows_of_image(table: pd.DataFrame, example: str, image: int) -> pd.DataFrame:
    """The rows of one image of an example; runs of former versions have one per example."""
    keep = table["example"] == example
    if "image" in table:
        keep &= table["image"].fillna(0) == image
    return pd.DataFrame(table[keep])


def heatmap_pictures(
    image: Image.Image,
    tokens: pd.DataFrame,
    patches: pd.DataFrame | None,
    grid: Mapping[str, Any],
    *,
    title: str = "",
    limits: Limits | None = None,
) -> dict[str, Axes]:
    """Figures of one image of an example: "heatmap", or with a Q-Former "queries" and "picture".

    Args:
        image: of the example.
        tokens: its rows of the table "heatmap".
        patches: its rows of the table "picture", where there is one.
        grid: its row of the table "grids".
        title: such as the prompt.
        limits: values at the ends of the colour scale, where several images share it.
    """
    layers = _shown(sorted(set(tokens["layer"])))
    values = _cells(tokens, layers)
    if patches is not None:
        bars = token_bars(values, layers, title=title, note="Q-Former queries")
        over = _over(image, patches, layers, grid, title=title, note=QFORMER)
        return {"queries": bars, "picture": over}
    if int(grid["rows"]) == 0:
        return {"heatmap": token_bars(values, layers, title=title, note=ORDER)}
    return {"heatmap": _over(image, tokens, layers, grid, title=title, limits=limits)}


def _over(
    image: Image.Image,
    table: pd.DataFrame,
    layers: Sequence[int],
    grid: Mapping[str, Any],
    **shown: Any,
) -> Axes:
    cells = _cells(pd.DataFrame(table[table["row"] >= 0]), layers)
    maps = cells.reshape(len(layers), int(grid["rows"]), int(grid["cols"]))
    left, top, right, bottom = (float(grid[side]) for side in ("left", "top", "right", "bottom"))
    box: Box = (left, top, right, bottom)
    return overlay(image, maps, layers, box, **shown)


def _cells(table: pd.DataFrame, layers: Sequence[int]) -> Float[np.ndarray, "layer cell"]:
    return np.stack(
        [table.loc[table["layer"] == layer, "value"].to_numpy(float) for layer in layers]
    )


def _shown(layers: Sequence[int]) -> list[int]:
    """All layers, or `MOST_LAYERS` of them, evenly spread from the first to the last."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    picked = np.linspace(0, len(layers) - 1, MOST_LAYERS).round().astype(int)
    return [layers[i] for i in picked]
