"""Heatmaps of a dataset as tables: each value with its layer, its image and its place on it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.heatmaps import Perturbation, heatmap_pass, stack_maps
from attrib.analyses.qformer import patch_attention_if_any, pictures_of, project
from attrib.analyses.visual_tokens import require_images
from attrib.data import EditSample
from attrib.model.batch import Batch, Picture
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables

NO_PLACE = -1  # row and column of a visual token outside a grid
SIDES = ("left", "top", "right", "bottom")


def measure_heatmaps(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    how: Perturbation,
    layers: Sequence[int] | None = None,
) -> Tables:
    """Tables "heatmap" and "grids", and "picture" for a model with a Q-Former.

    "heatmap": example, layer, token (counted from the first visual one), image (of the prompt,
    from 0 on), row, col (-1: outside the grid) and value. "picture": the scores of the queries
    projected onto patches; example, layer, patch, image, row, col, value. "grids": per example and
    image the rows and cols of tokens or of those patches, their box (left, top, right, bottom, in
    pixels of the image), and its number of visual tokens as value.

    Raises:
        AttribError: A sample has no image.
    """
    require_images(batch)
    chosen = range(vlm.num_layers) if layers is None else layers
    ids, counts = [sample.id for sample in samples], batch["visual"].sum(1).tolist()
    with patch_attention_if_any(vlm) as attention, heatmap_pass(vlm, batch, chosen, how) as maps:
        vlm.last_logits(batch)
    scores, pictures = stack_maps(maps, chosen, batch), pictures_of(vlm, batch, samples)
    tables = {"heatmap": _table(ids, scores, batch.pictures, counts, chosen, "token")}
    if attention:
        patches = project(scores, attention[-1], batch)
        num_patches = [patches.shape[-1]] * len(ids)
        tables["picture"] = _table(ids, patches, pictures, num_patches, chosen, "patch")
    return tables | {"grids": _grids(ids, batch.pictures, pictures)}


def _grids(
    ids: Sequence[str],
    tokens: Sequence[Sequence[Picture]],
    pictures: Sequence[Sequence[Picture]],
) -> pd.DataFrame:
    """One row per example and image: its grid in `pictures`, its number of tokens in `tokens`."""
    rows = []
    for name, own_tokens, own in zip(ids, tokens, pictures, strict=True):
        for number, (picture, one) in enumerate(zip(own_tokens, own, strict=True)):
            grid, at = one.grid, picture.tokens
            shape = (grid.rows, grid.cols, *grid.box) if grid else (0, 0, *[np.nan] * 4)
            rows.append((*shape, name, number, float(at.stop - at.start)))
    return pd.DataFrame(rows, columns=["rows", "cols", *SIDES, "example", "image", "value"])


def _table(
    ids: Sequence[str],
    values: Float[Tensor, "batch layer cell"],
    pictures: Sequence[Sequence[Picture]],
    counts: Sequence[int],
    layers: Sequence[int],
    name: str,
) -> pd.DataFrame:
    """One row per example, layer and cell; `counts` is the number of cells of each example."""
    table = tidy(values.cpu().numpy(), example=range(len(ids)), layer=layers, **{
        name: range(values.shape[-1])
    })  # fmt: skip
    places = np.full((len(ids), values.shape[-1], 3), NO_PLACE)
    for place, own in zip(places, pictures, strict=True):
        for number, picture in enumerate(own):
            place[picture.tokens, 0] = number
            if (grid := picture.grid) is not None:
                on_grid = np.indices((grid.rows, grid.cols)).reshape(2, -1).T
                place[grid.first : grid.first + len(on_grid), 1:] = on_grid
    example, cell = table["example"].to_numpy(), table[name].to_numpy()
    image, row, col = places[example, cell].T
    table = table.assign(image=image, row=row, col=col, example=np.asarray(ids, object)[example])
    columns = ["example", "layer", name, "image", "row", "col", "value"]
    return table.loc[cell < np.asarray(counts)[example], columns].reset_index(drop=True)
