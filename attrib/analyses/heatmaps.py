"""Which visual tokens each layer's attention reads (VisEdit, Eqs. 6-8, Figs. 1, 4, 7 and 9).

A layer's attention reads a token if noise on the token's state (Eq. 6) changes the attention output
at the last prompt token. With the clean output a and the perturbed one a_n (Eq. 8),

    value = (1 - cos(a, a_n)) / 2                                                    (Eq. 7)

At the paper's three standard deviations of noise a perturbed token no longer resembles itself: its
key is random, one draw shows little, and many are needed. Noise of 0.1 standard deviations shows
with one draw how much of the token is read (`attrib faithfulness` compares the two where the truth
is known). One attention call per layer and draw, on the perturbed tokens alone, gives the values of
all tokens (`attrib.analyses.key_value_swap`).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.analyses.key_value_swap import output_changes
from attrib.analyses.qformer import patch_attention_if_any, pictures_of, project
from attrib.analyses.visual_tokens import Perturbation, VisualTokens, require_images
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention_replay import AttentionRecord, each_attention
from attrib.metrics import half_cosine_distance
from attrib.model.batch import Batch, Picture
from attrib.model.devices import on_each_device
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables
from attrib.vocabulary import NoiseSite, Unit

# The settings of the authors' program, which differ from the paper. Its values are twice ours: it
# omits the factor 1/2 of Eq. 7.
PUBLISHED_CODE: dict[str, Any] = {
    "noise": 0.7, "unit": "abs", "radius": 3, "draws": 10, "site": "attention",
}  # fmt: skip
NO_PLACE = -1  # row and column of a visual token outside a grid
SIDES = ("left", "top", "right", "bottom")


@torch.no_grad()
def heatmaps(
    vlm: VLM,
    batch: Batch,
    layers: Sequence[int] | None = None,
    noise: float = 3.0,
    unit: Unit = "std",
    radius: int = 0,
    draws: int = 1,
    seed: int = 0,
    *,
    site: NoiseSite = "block",
) -> Float[Tensor, "batch layer visual"]:
    """How much each layer's attention output at the last prompt token depends on a visual token.

    Args:
        vlm: The model.
        batch: Prompts with their images; some may have none.
        layers: The layers, in the order of the result; all by default.
        noise: Standard deviation of the Gaussian noise on a token's state.
        unit: "std": multiples of the standard deviation of the example's visual states at the site,
            of all its images together. "abs": absolute.
        radius: Perturb a token together with its neighbours within `radius` rows and columns.
        draws: Number of draws of the noise to average over.
        seed: Seed of the noise, which depends on the example, not on its batch.
        site: "block", the layer's input (the paper), or "attention", after the layer's norm (the
            authors' program, `PUBLISHED_CODE`).

    Returns:
        Values from 0 (no change) to 1; NaN past an example's visual tokens and in layers without
        attention. `batch.pictures` has the columns of each image.

    Raises:
        AttribError: No image in the batch, an unknown layer, a `radius` for visual tokens without a
            grid, or an argument out of range.
    """
    chosen = range(vlm.num_layers) if layers is None else layers
    with heatmap_pass(
        vlm, batch, chosen, Perturbation(noise, unit, radius, draws, seed, site)
    ) as maps:
        vlm.last_logits(batch)
    return stack_maps(maps, chosen, batch)


@contextmanager
def heatmap_pass(
    vlm: VLM, batch: Batch, layers: Collection[int], how: Perturbation
) -> Iterator[dict[int, Float[Tensor, "batch visual"]]]:
    """Yield a dict that the forward pass inside the context fills: layer -> its heatmap.

    Other contexts of `attrib.forward` can share the pass.
    """
    if not layers or not all(0 <= layer < vlm.num_layers for layer in layers):
        raise AttribError(f"layers {list(layers)}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    tokens, maps = VisualTokens.of(batch), dict[int, Tensor]()
    layer_map = map_of_layer(vlm, batch, how)

    def process(record: AttentionRecord) -> None:
        maps[record.layer] = layer_map(record, tokens)

    with each_attention(vlm, tokens.last, layers, process):
        yield maps


def map_of_layer(
    vlm: VLM, batch: Batch, how: Perturbation
) -> Callable[[AttentionRecord, VisualTokens], Float[Tensor, "batch visual"]]:
    """The function that maps a layer's attention to its heatmap, the mean over draws of noise."""
    tokens = VisualTokens.of(batch)
    neighbours = tokens.neighbours(batch, how.radius) if how.radius else None
    draws = (tokens.noise(batch, vlm.d_model, how.seed, draw) for draw in range(how.draws))
    noise = [on_each_device(one) for one in draws]

    def layer_map(record: AttentionRecord, tokens: VisualTokens) -> Tensor:
        device = record.block.hidden.device
        each = [_layer_heatmap(record, tokens, how, one(device), neighbours) for one in noise]
        return torch.stack(each).mean(0)

    return layer_map


def stack_maps(
    maps: dict[int, Tensor], layers: Sequence[int], batch: Batch
) -> Float[Tensor, "batch layer visual"]:
    """The maps of a pass as one tensor, as `heatmaps` returns them."""
    real = VisualTokens.of(batch).real
    some = next(iter(maps.values()), torch.zeros(real.shape))
    none = torch.full_like(some, torch.nan)
    values = torch.stack([maps.get(layer, none).to(some.device) for layer in layers], 1)
    return values.masked_fill(~real.to(some.device)[:, None], torch.nan)


def _layer_heatmap(
    record: AttentionRecord,
    tokens: VisualTokens,
    how: Perturbation,
    noise: Float[Tensor, "batch token d_model"],
    neighbours: Bool[Tensor, "batch token token"] | None,
) -> Float[Tensor, "batch token"]:
    """The heatmap of one layer and one draw of noise."""
    hidden = record.at_site(how.site).hidden
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    clean = tokens.gather(hidden).to(dtype)
    added = how.noise * noise.to(clean)
    if how.unit == "std":
        added = added * tokens.std(clean)
    perturbed = (clean + added).to(hidden.dtype)
    out, change = output_changes(record, tokens, how.site, perturbed, neighbours)
    moved = (added != 0).any(-1)
    if neighbours is not None:
        moved = (neighbours & moved[:, None]).any(-1)
    return half_cosine_distance(out[:, None], change) * moved


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
