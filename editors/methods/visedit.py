"""VisEdit: a visual adapter whose strength per visual token is set by an influence mapper.

The loss of the mapper, which predicts the visual tokens that a prompt makes matter: VisEdit Eqs.
16-19. By default, as in the published code, a step takes one of the request, its text and its
visual generality, drawn at random (the paper sums over them: `mapper_inputs="all"`), and the same
24 visual tokens of all examples; the target is the mean heatmap of the layers after the adapter up
to the last but one. Unlike in that code, target and states always belong to the same image. Unlike
in Eq. 18, each input runs whole, with its own last prompt token as the query; `mapper_query` has
both other ways (`editors.methods.influence_target`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters import EditAdapter
from editors.adapters.sites import Site
from editors.methods.adapter_editor import PROGRAM, SELECTION, AdapterEditor
from editors.methods.adapter_objective import (
    DEFAULT_DEVIATIONS,
    DEFAULT_OPTIONS,
    MENDED,
    AdapterConfig,
    AdapterObjective,
)
from editors.methods.influence_target import INSIDE, Heat, target_heat
from editors.training.config import EditorConfig
from editors.training.dataset import CachedDataset, StreamedDataset
from editors.training.prefix import PrefixStates
from editors.training.presets import Preset

TOKENS = 24  # visual tokens per step
OUTSIDE = "visual_locality"
MAPPER_ROLES = (*INSIDE, OUTSIDE)  # the kinds of input that the terms need
EPSILON = 1e-8


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
    drawn = [INSIDE[rng.integers(len(INSIDE))]] if config.mapper_inputs == "one" else INSIDE
    found: dict[str, Tensor] = {}
    for role in drawn:
        for name, value in _terms(adapter, data, heat, items, layer, role, rng).items():
            # One term for unrelated inputs, whatever the number of kinds inside the scope.
            if name != "mapper_down" or name not in found:
                found[name] = found[name] + value if name in found else value
    return {n: config.influence * found[n] for n in config.mapper_terms if n in found}


def _terms(
    adapter: EditAdapter,
    data: CachedDataset,
    heat: Mapping[int, Heat],
    items: Sequence[int],
    layer: int,
    role: str,
    rng: np.random.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """The terms for one kind of input; see `mapper_losses`."""
    usable = [i for i in items if heat[i].get(role) and data.inputs[i].get(OUTSIDE)]
    if not usable:
        return {}
    inside = [data.inputs[i][role][0] for i in usable]
    outside = [data.inputs[i][OUTSIDE][0] for i in usable]
    maps = [heat[i][role][0] for i in usable]
    sizes = [len(_visual(q, layer)) for q in [*inside, *outside]]
    fewest = min([*sizes, *(m.shape[1] for m in maps)])
    at = torch.from_numpy(rng.permutation(fewest)[:TOKENS])
    last = torch.stack([data.edits[i].hidden[layer][data.edits[i].last] for i in usable])
    high, low = (
        adapter.influence(torch.stack([_visual(q, layer)[at] for q in queries]), last)
        for queries in (inside, outside)
    )
    target = torch.stack([m[:, at] for m in maps]).clamp(min=EPSILON)
    shares = (target / target.sum(-1, keepdim=True)).mean(1)
    return {
        "mapper_up": -(high.sigmoid() + EPSILON).log().mean(),
        "mapper_down": -(1 - low.sigmoid() + EPSILON).log().mean(),
        "mapper_attribution": -(shares * high.log_softmax(-1)).sum(-1).mean(),
    }


def _visual(query: PrefixStates, layer: int) -> Float[Tensor, "visual d_model"]:
    return query.hidden[layer][query.spans["visual"]]


# An input without an image passes a visual adapter unchanged, so text locality has no term. Neither
# paper nor program has a gate.
COMMON = {**PROGRAM, "gate": "none", "steps": 200_000, "validate_every": 500, "save_every": 500}


class VisEditConfig(AdapterConfig):
    """Options of VisEdit: those of adapters, with the influence mapper."""

    presets: ClassVar[Mapping[str, Preset]] = {
        **{n: p.with_options(mapper=True) for n, p in AdapterConfig.presets.items()},
        "default": Preset(
            MENDED,
            {**DEFAULT_OPTIONS, "mapper": True},
            {
                **DEFAULT_DEVIATIONS,
                "steps": "50,000, as in DualEdit's program (VisEdit: 200,000)",
                "noise of the heatmaps": "3 standard deviations, as in the paper (program: 0.7 "
                "after the norm), drawn once per edit (program: anew in each step)",
                "heatmap of a generality input": "its own, with its own prompt (paper: the edit's "
                "prompt, Eq. 18; program: the request's, whatever the input)",
            },
        ),
        "visedit-paper": Preset(
            "VisEdit, section 4 and App. B.4 (LLaVA-1.5: visual 18, BLIP-2: 19, MiniGPT-4: 17)",
            {
                **COMMON,
                "influence": 1.0,
                "mapper_target": "paper",
                "mapper_query": "edit",
                "mapper_inputs": "all",
                "mapper_mean": "after",
            },
            {
                "form of the adapter": "that of the program: layer norms, 8 heads, biases, a query "
                "of two maps (Eqs. 9-10 have one head without norms; the parameter counts of App. "
                "B.4 are those of the program)",
                "first term of Eq. 14": "the other image with the edit's own prompt, as in the "
                "program and in section 4.1",
                **SELECTION,
            },
        ),
        "visedit-code": Preset(
            "qizhou000/VisEdit, `configs/vead/*.yaml`, `vead.py` and `adpt_model.py`",
            {**COMMON, "mapper_target": "published", "mapper_query": "request"},
            {
                "noise of the heatmaps": "drawn once per edit, before training (program: anew in "
                "each step)",
                **SELECTION,
            },
        ),
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
        heat = target_heat(vlm, samples, sites[0].layer, config)
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
