"""Heatmaps as tables over samples, with what is needed to lay them over the images."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.first_table import Tables
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.qformer import find_qformer, patch_attention, patch_grid, project
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch, Grid
from attrib.model.vlm import VLM

NO_PLACE = -1  # row and column of a visual token that lies on no grid
SIDES = ("left", "top", "right", "bottom")
Places = np.ndarray  # Int "row_col cell"


def measure_heatmaps(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    how: Perturbation,
    layers: Sequence[int] | None = None,
) -> Tables:
    """The tables "heatmap" and "grids"; and for a model with a Q-Former "picture".

    "heatmap": example, layer, token (counted from the first visual one), row, col (-1: on no grid)
    and value. "picture": the scores of the queries handed on to the patches they attend to;
    example, layer, patch, row, col, value. "grids": per example rows and cols, of tokens or of
    those patches, the box they fill (left, top, right, bottom, in pixels of the image), and as
    value the number of visual tokens.

    Raises:
        AttribError: a sample has no image.
    """
    refuse_text_alone(batch)
    wanted = range(vlm.num_layers) if layers is None else layers
    ids = [sample.id for sample in samples]
    with patch_attention_if_any(vlm) as seen, heatmap_pass(vlm, batch, wanted, how) as maps:
        vlm.logits(batch)
    scores, grids = stack_maps(maps, wanted, batch), grids_of(vlm, batch, samples)
    boxes = {"grids": _grid_table(ids, grids, batch)}
    if not seen:
        return {
            "heatmap": _table(ids, scores, _token_places(batch, grids), wanted, "token"),
            **boxes,
        }
    nowhere = _token_places(batch, [None] * batch.size)
    picture = project(scores, seen[-1], batch)
    patches = [_places(grid, picture.shape[-1]) for grid in grids]
    return {
        "heatmap": _table(ids, scores, nowhere, wanted, "token"),
        "picture": _table(ids, picture, patches, wanted, "patch"),
        **boxes,
    }


def refuse_text_alone(batch: Batch) -> None:
    """Raise AttribError if a request of the batch has no visual tokens."""
    if not batch["visual"].any(1).all():
        raise AttribError("this request is text alone: a heatmap needs an image, give one")


def patch_attention_if_any(vlm: VLM) -> AbstractContextManager[list[Tensor]]:
    """`patch_attention` of a model with a Q-Former; for others a list that stays empty."""
    return nullcontext([]) if find_qformer(vlm) is None else patch_attention(vlm)


def grids_of(vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> list[Grid | None]:
    """Where an example's visual tokens lie, or with a Q-Former the patches behind them."""
    if find_qformer(vlm) is None:
        return list(batch.grids)
    images = [sample.request.image for sample in samples]
    return [None if image is None else patch_grid(vlm, image) for image in images]


def _token_places(batch: Batch, grids: Sequence[Grid | None]) -> list[Places]:
    counts = batch["visual"].sum(1).tolist()
    return [_places(grid, count) for grid, count in zip(grids, counts, strict=True)]


def _places(grid: Grid | None, cells: int) -> Places:
    """Row and column of the visual tokens or patches of one example."""
    places = np.full((2, cells), NO_PLACE)
    if grid is not None:
        on_grid = np.indices((grid.rows, grid.cols)).reshape(2, -1)
        places[:, grid.first : grid.first + grid.rows * grid.cols] = on_grid
    return places


def _table(
    ids: Sequence[str],
    values: Float[Tensor, "batch layer cell"],
    places: Sequence[Places],
    layers: Sequence[int],
    name: str,
) -> pd.DataFrame:
    """One row per example, layer and cell."""
    arrays = values.double().cpu().numpy()
    parts = []
    for example, mine, place in zip(ids, arrays, places, strict=True):
        cells = place.shape[1]
        columns = {
            "example": example,
            "layer": np.repeat(np.asarray(layers), cells),
            name: np.tile(np.arange(cells), len(layers)),
            "row": np.tile(place[0], len(layers)),
            "col": np.tile(place[1], len(layers)),
            "value": mine[:, :cells].ravel(),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _grid_table(ids: Sequence[str], grids: Sequence[Grid | None], batch: Batch) -> pd.DataFrame:
    none = (0, 0, *[np.nan] * 4)
    shapes = [none if grid is None else (grid.rows, grid.cols, *grid.box) for grid in grids]
    table = pd.DataFrame(shapes, columns=["rows", "cols", *SIDES])
    return table.assign(example=ids, value=batch["visual"].sum(1).double().tolist())
