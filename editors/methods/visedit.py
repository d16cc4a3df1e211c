"""VisEdit: a visual adapter whose strength per visual token is set by an influence mapper.

The loss of the mapper, which predicts the visual tokens that a prompt makes matter: VisEdit Eqs.
16-19. As in the published code, a step takes one of the request, its text and its visual
generality, drawn at random (the paper sums over them), and the same 24 visual tokens of all
examples; the target is the mean heatmap of the layers after the adapter up to the last but one.
Unlike in that code, target and states always belong to the same image. Unlike in Eq. 18, each input
runs whole, with its own last prompt token as the query: the paper puts its visual states into the
pass of the request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.heatmaps import heatmaps
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.adapters import EditAdapter
from editors.adapters.sites import MapperTarget, Site
from editors.base import encode_requests
from editors.methods.adapter_editor import AdapterEditor
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.training.config import EditorConfig
from editors.training.dataset import CachedDataset, StreamedDataset, requests_of
from editors.training.losses import GENERALITY
from editors.training.prefix import PrefixStates

TOKENS = 24  # visual tokens per step
INSIDE, OUTSIDE = ("request", *GENERALITY), "visual_locality"
MAPPER_ROLES = (*INSIDE, OUTSIDE)  # the kinds of input that the terms need
EPSILON = 1e-8


# Arguments of `attrib.heatmaps` for each target.
ATTRIBUTIONS: dict[MapperTarget, dict[str, Any]] = {
    "paper": {},
    "published": {"noise": 0.7, "unit": "abs", "site": "attention"},
    "0.1-sigma": {"noise": 0.1},
}
Heat = dict[str, list[Float[Tensor, " visual"]]]


@torch.no_grad()
def target_heat(
    vlm: VLM,
    samples: Sequence[EditSample],
    layer: int,
    how: Mapping[str, Any],
    *,
    batch_size: int = 32,
) -> list[Heat]:
    """Mean heatmaps of the layers after `layer`, by sample and kind of input."""
    inputs = [
        (i, role, request)
        for i, sample in enumerate(samples)
        for role in INSIDE
        for request in requests_of(sample, role)
        if request.source is not None
    ]
    later = range(layer + 1, vlm.num_layers - 1) or [vlm.num_layers - 1]  # not the last, if others
    found: list[Heat] = [{} for _ in samples]
    for start in progress(range(0, len(inputs), batch_size), "heatmaps of the edits"):
        some = inputs[start : start + batch_size]
        batch = encode_requests(vlm, [request for _, _, request in some], targets=False)
        maps = heatmaps(vlm, batch, later, **how).mean(1)
        for (i, role, _), values in zip(some, maps, strict=True):
            found[i].setdefault(role, []).append(values[values.isfinite()])
    return found


def mapper_losses(
    adapter: EditAdapter,
    data: CachedDataset,
    heat: Mapping[int, Heat],
    items: Sequence[int],
    layer: int,
    config: AdapterConfig,
    rng: np.random.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """The terms of the influence mapper, weighted.

    Args:
        adapter: The adapter with the mapper.
        data: Inputs, with their states at `layer`.
        heat: The target heatmaps, by the samples' place in `data`.
        items: The samples of this step.
        layer: The adapter's layer.
        config: Names the terms, and has their weight.
        rng: Draws the kind of input and the visual tokens.

    Returns:
        By name: mapper_up (Eq. 16), mapper_down (Eq. 17), mapper_attribution (Eq. 19); none if no
        sample has both an input inside the edit's scope and a visual one outside.
    """
    role = INSIDE[rng.integers(len(INSIDE))]
    usable = [i for i in items if heat[i].get(role) and data.inputs[i].get(OUTSIDE)]
    if not usable:
        return {}
    inside = [data.inputs[i][role][0] for i in usable]
    outside = [data.inputs[i][OUTSIDE][0] for i in usable]
    maps = [heat[i][role][0] for i in usable]
    fewest = min(len(m) for m in [*maps, *(_visual(q, layer) for q in [*inside, *outside])])
    at = torch.from_numpy(rng.permutation(fewest)[:TOKENS])
    last = torch.stack([data.edits[i].hidden[layer][data.edits[i].last] for i in usable])
    high, low = (
        adapter.influence(torch.stack([_visual(q, layer)[at] for q in queries]), last)
        for queries in (inside, outside)
    )
    target = torch.stack([m[at] for m in maps]).clamp(min=EPSILON)
    shares = target / target.sum(-1, keepdim=True)
    terms = {
        "mapper_up": -(high.sigmoid() + EPSILON).log().mean(),
        "mapper_down": -(1 - low.sigmoid() + EPSILON).log().mean(),
        "mapper_attribution": -(shares * high.log_softmax(-1)).sum(-1).mean(),
    }
    return {name: config.influence * terms[name] for name in config.mapper_terms}


def _visual(query: PrefixStates, layer: int) -> Float[Tensor, "visual d_model"]:
    return query.hidden[layer][query.spans["visual"]]


class VisEditConfig(AdapterConfig):
    """Options of VisEdit: those of adapters, with the influence mapper."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {**options, "mapper": True} for name, options in AdapterConfig.presets.items()
    }

    mapper: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class VisEdit(AdapterEditor):
    """A visual adapter with an influence mapper (VisEdit, section 4).

    An input without an image passes it unchanged: text locality is 100 by construction. The
    ablations of its Table 3 are options: `mapper=False` (- IM), `mapper_terms` without one of
    "mapper_up", "mapper_down", "mapper_attribution", and `signal="none"` (- CA).
    """

    name: ClassVar[str] = "visedit"
    modalities: ClassVar[tuple[str, ...]] = ("visual",)
    config_class: ClassVar[type[EditorConfig]] = VisEditConfig

    @classmethod
    def needed_roles(cls, config: AdapterConfig, sites: Sequence[Site]) -> list[str]:
        """The kinds of input that training reads: with a mapper, those of its terms as well."""
        roles = super().needed_roles(config, sites)
        return list(dict.fromkeys([*roles, *(MAPPER_ROLES if config.trains_mapper else ())]))

    @classmethod
    def objective(
        cls,
        vlm: VLM,
        config: AdapterConfig,
        sites: Sequence[Site],
        data: CachedDataset | StreamedDataset,
        held_out: CachedDataset,
        samples: Sequence[EditSample],
    ) -> AdapterObjective:
        """The loss on `data`; with a mapper, its terms as well."""
        if not config.trains_mapper:
            return super().objective(vlm, config, sites, data, held_out, samples)
        if len(sites) > 1:
            raise AttribError("VisEdit's influence mapper is for one layer: give one visual layer")
        heat = target_heat(vlm, samples, sites[0].layer, ATTRIBUTIONS[config.mapper_target])
        return MapperObjective(vlm, data, held_out, config, sites, heat)


@dataclass(eq=False)
class MapperObjective(AdapterObjective):
    """The loss of an adapter plus that of its influence mapper (VisEdit, end of section 4.3).

    Attributes:
        heat: The mapper's target heatmaps, by sample.
    """

    heat: Sequence[Heat]

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss on some edits."""
        data, at = self.data.load(items)
        heat = dict(zip(at, (self.heat[item] for item in items), strict=True))
        (site,) = self.sites
        return super().losses(items, rng) | mapper_losses(
            site.adapter, data, heat, at, site.layer, self.config, rng
        )
