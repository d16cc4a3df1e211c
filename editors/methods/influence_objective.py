"""What the influence mapper is taught: which visual tokens the model reads for an edit's prompt.

Sources: VisEdit Eqs. 16-19. As in the published code, a step looks at one of the request, its text
and its visual generality, drawn at random (the paper sums over them), and at the same 24 visual
tokens of all examples; the target is the mean heatmap of the layers behind the adapter up to the
last but one. Unlike in that code, target and states are always of the same image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.heatmaps import heatmaps
from attrib.data.samples import EditRequest, EditSample
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.adapters.adapter import EditAdapter
from editors.adapters.sites import Target
from editors.base import encode_requests
from editors.prefix.cached_dataset import CachedDataset, requests_of
from editors.prefix.states import PrefixStates
from editors.training.losses import GENERALITY, Weights

TOKENS = 24  # visual tokens that a step looks at
LOOKED_AT = ("request", *GENERALITY)
TINY = 1e-8


@dataclass(frozen=True)
class Attribution:
    """How the target heatmaps are made; see `attrib.heatmaps`."""

    noise: float = 3.0
    unit: str = "std"
    site: str = "block"
    draws: int = 1
    seed: int = 0


ATTRIBUTIONS: dict[Target, Attribution] = {
    "paper": Attribution(),
    "published": Attribution(noise=0.7, unit="abs", site="attention"),
    "gentle": Attribution(noise=0.1),
}
Heat = dict[str, list[Float[Tensor, " visual"]]]


@torch.no_grad()
def target_heat(
    vlm: VLM,
    samples: Sequence[EditSample],
    layer: int,
    how: Attribution,
    *,
    batch_size: int = 32,
) -> list[Heat]:
    """Per sample and kind of input the mean heatmap of the layers behind `layer`."""
    asked = [
        (i, role, request)
        for i, sample in enumerate(samples)
        for role in LOOKED_AT
        for request in requests_of(sample, role)
        if request.source is not None
    ]
    found: list[Heat] = [{} for _ in samples]
    for start in progress(range(0, len(asked), batch_size), "attribution of the edits"):
        some = asked[start : start + batch_size]
        maps = _mean_heat(vlm, [request for _, _, request in some], _behind(vlm, layer), how)
        for (i, role, _), values in zip(some, maps, strict=True):
            found[i].setdefault(role, []).append(values[values.isfinite()])
    return found


def _behind(vlm: VLM, layer: int) -> list[int]:
    """The layers behind an adapter, without the last one where there are others."""
    return list(range(layer + 1, vlm.num_layers - 1)) or [vlm.num_layers - 1]


def _mean_heat(
    vlm: VLM, requests: Sequence[EditRequest], layers: Sequence[int], how: Attribution
) -> Float[Tensor, "batch visual"]:
    batch = encode_requests(vlm, requests, targets=False)
    maps = heatmaps(vlm, batch, layers, how.noise, how.unit, 0, how.draws, how.seed, site=how.site)  # pyright: ignore[reportArgumentType] - checked by `heatmaps`
    return maps.mean(1)


def mapper_losses(
    adapter: EditAdapter,
    data: CachedDataset,
    heat: Mapping[int, Heat],
    items: Sequence[int],
    layer: int,
    weights: Weights,
    rng: np.random.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """The three terms of the influence mapper, weighted.

    Args:
        adapter: The one whose influence mapper is taught.
        data: Inputs, with their states at `layer`.
        heat: The targets, by the samples' place in `data`.
        items: The samples of this step.
        layer: Where the adapter is.
        weights: Of the loss; those terms are left out that it does not name.
        rng: Draws the kind of input and the visual tokens.
    """
    role = LOOKED_AT[rng.integers(len(LOOKED_AT))]
    usable = [i for i in items if heat[i].get(role) and data.inputs[i].get("visual_locality")]
    if not usable:
        return {}
    inside = [data.inputs[i][role][0] for i in usable]
    outside = [data.inputs[i]["visual_locality"][0] for i in usable]
    maps = [heat[i][role][0] for i in usable]
    fewest = min(len(m) for m in [*maps, *(_visual(q, layer) for q in [*inside, *outside])])
    at = torch.from_numpy(rng.permutation(fewest)[:TOKENS])
    last = torch.stack([data.edits[i].hidden[layer][data.edits[i].last] for i in usable])
    high, low = (
        adapter.influence(torch.stack([_visual(q, layer)[at] for q in queries]), last)
        for queries in (inside, outside)
    )
    target = torch.stack([m[at] for m in maps]).clamp(min=TINY)
    terms = {
        "mapper_up": -(high.sigmoid() + TINY).log().mean(),
        "mapper_down": -(1 - low.sigmoid() + TINY).log().mean(),
        "mapper_attribution": _cross_entropy(target, high),
    }
    return {name: weights.influence * terms[name] for name in weights.mapper_terms}


def _cross_entropy(
    target: Float[Tensor, "batch token"], scores: Float[Tensor, "batch token"]
) -> Float[Tensor, ""]:
    shares = target / target.sum(-1, keepdim=True)
    return -(shares * scores.log_softmax(-1)).sum(-1).mean()


def _visual(query: PrefixStates, layer: int) -> Float[Tensor, "visual d_model"]:
    return query.hidden[layer][query.spans["visual"]]
