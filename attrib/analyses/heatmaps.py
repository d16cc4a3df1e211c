"""Which visual tokens each layer's attention reads (VisEdit, Eqs. 6-8, Figs. 1, 4, 7 and 9).

A token counts as read by a layer's attention when noise on its state there changes what attention
writes at the last prompt token: with a the clean and a_n the perturbed output,

    value = (1 - cos(a, a_n)) / 2                                                    (Eq. 8)

The paper's noise of three standard deviations makes another token of it: its key is random, and
what it changes may say more about the noise than about the token. Then one draw shows little, and
many are needed. Noise of a tenth leaves the token what it was, and shows with one draw how much of
it is read (`attrib faithfulness` compares the two where the truth is known).

One attention call per layer and draw gives the values of all tokens
(`attrib.analyses.key_value_swap`): it is made on the perturbed tokens alone, whose keys and values
are swapped one by one for the clean.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.analyses.key_value_swap import output_changes
from attrib.analyses.qformer import grids_of, patch_attention_if_any, project
from attrib.analyses.visual_tokens import VisualTokens, refuse_text_alone
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention_replay import AttentionRecord, Site, each_attention
from attrib.forward.noise import Unit
from attrib.model.batch import Batch, Grid
from attrib.model.vlm import VLM
from attrib.runs.collect import Tables

# What the authors' program does, in place of what the paper says. Its values are twice ours: it
# leaves out the half of Eq. 8.
PUBLISHED_CODE: dict[str, Any] = {
    "noise": 0.7, "unit": "abs", "radius": 3, "draws": 10, "site": "attention",
}  # fmt: skip


@dataclass(frozen=True)
class Perturbation:
    """How visual states are perturbed; see `heatmaps`."""

    noise: float = 3.0
    unit: Unit = "std"
    radius: int = 0
    draws: int = 1
    seed: int = 0
    site: Site = "block"

    def __post_init__(self):
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise AttribError(f"noise: expected a number from 0 on, got {self.noise}")
        if self.unit not in ("std", "abs"):
            raise AttribError(f'unit: expected "std" or "abs", got {self.unit!r}')
        if self.radius < 0 or self.draws < 1:
            raise AttribError(
                f"expected a radius from 0 and draws from 1 on, got {self.radius} and {self.draws}"
            )
        if self.site not in ("block", "attention"):
            raise AttribError(f'site: expected "block" or "attention", got {self.site!r}')


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
    site: Site = "block",
) -> Float[Tensor, "batch layer visual"]:
    """How much each layer's attention at the last prompt token depends on each visual token.

    Args:
        vlm: the model.
        batch: prompts with their images; prompts without one may be among them.
        layers: which, in the order wanted; all of them if not given.
        noise: standard deviation of the Gaussian noise on a token's state.
        unit: of `noise`: "std" for multiples of the standard deviation of the example's visual
            states where the noise goes in, "abs" for absolute numbers.
        radius: perturb a token together with its neighbours, `radius` rows and columns around it.
        draws: average over so many draws of the noise.
        seed: of the noise, which belongs to the example: batches do not matter.
        site: where noise goes in: "block", the layer's input (the paper), or "attention", behind
            the layer's norm (the authors' program, `PUBLISHED_CODE`).

    Returns:
        Values from 0 (no change) to 1, NaN past an example's visual tokens, and in layers without
        attention.

    Raises:
        AttribError: no image in the batch, a layer the model does not have, a `radius` where visual
            tokens have no grid, or an argument out of its range.
    """
    wanted = range(vlm.num_layers) if layers is None else layers
    how = Perturbation(noise, unit, radius, draws, seed, site)
    with heatmap_pass(vlm, batch, wanted, how) as maps:
        vlm.logits(batch)
    return stack_maps(maps, wanted, batch)


@contextmanager
def heatmap_pass(
    vlm: VLM, batch: Batch, layers: Collection[int], how: Perturbation
) -> Iterator[dict[int, Float[Tensor, "batch visual"]]]:
    """Yield a dict that the forward pass inside the context fills: layer -> its heatmap.

    Other contexts of `attrib.forward.hooks` can look at the same pass.
    """
    if not layers or not all(0 <= layer < vlm.num_layers for layer in layers):
        raise AttribError(f"layers {list(layers)}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    tokens = VisualTokens.of(batch)
    near = tokens.near(batch, how.radius) if how.radius else None
    noise = [tokens.noise(batch, vlm.d_model, how.seed, draw) for draw in range(how.draws)]
    maps: dict[int, Tensor] = {}

    def work(attended: AttentionRecord) -> None:
        each = [_draw_map(attended, tokens, how, one, near) for one in noise]
        maps[attended.layer] = torch.stack(each).mean(0)

    with each_attention(vlm, tokens.last, layers, work):
        yield maps


def stack_maps(
    maps: dict[int, Tensor], layers: Sequence[int], batch: Batch
) -> Float[Tensor, "batch layer visual"]:
    """The maps of a pass as one tensor, as `heatmaps` returns them."""
    real = VisualTokens.of(batch).real
    some = next(iter(maps.values()), torch.zeros(real.shape))
    none = torch.full_like(some, torch.nan)
    values = torch.stack([maps.get(layer, none).to(some.device) for layer in layers], 1)
    return values.masked_fill(~real.to(some.device)[:, None], torch.nan)


def _draw_map(
    attended: AttentionRecord,
    tokens: VisualTokens,
    how: Perturbation,
    noise: Float[Tensor, "batch token d_model"],
    near: Bool[Tensor, "batch token token"] | None,
) -> Float[Tensor, "batch token"]:
    """The heatmap of one layer under one draw of noise."""
    hidden = attended.entry(how.site).hidden
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    clean = tokens.gather(hidden).to(dtype)
    added = how.noise * noise.to(clean)
    if how.unit == "std":
        added = added * tokens.std(clean)
    perturbed = (clean + added).to(hidden.dtype)
    out, change = output_changes(attended, tokens, how.site, perturbed, near)
    moved = (added != 0).any(-1)
    if near is not None:
        moved = (near & moved[:, None]).any(-1)
    return half_cosine_distance(out[:, None], change) * moved


def half_cosine_distance(
    a: Float[Tensor, "*#rest d_model"], change: Float[Tensor, "*#rest d_model"]
) -> Float[Tensor, "..."]:
    """(1 - cos(a, a + change)) / 2, to full precision however small the change is."""
    squared = change.square().sum(-1)
    before, after = a.norm(dim=-1), (a + change).norm(dim=-1)
    tiny = torch.finfo(a.dtype).tiny
    longer = (2 * (a * change).sum(-1) + squared) / (before + after).clamp(min=tiny)
    return ((squared - longer.square()) / (4 * before * after).clamp(min=tiny)).clamp(0, 1)


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
