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

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.analyses.token_swaps import output_changes
from attrib.analyses.visual_tokens import VisualTokens
from attrib.errors import AttribError
from attrib.forward.attention_replay import Attended, Site, each_attention
from attrib.forward.noise import Unit
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

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

    def work(attended: Attended) -> None:
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
    attended: Attended,
    tokens: VisualTokens,
    how: Perturbation,
    noise: Float[Tensor, "batch token d_model"],
    near: Bool[Tensor, "batch token token"] | None,
) -> Float[Tensor, "batch token"]:
    """The heatmap of one layer under one draw of noise."""
    hidden = attended.entry(how.site).hidden
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    clean = tokens.pick(hidden).to(dtype)
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
