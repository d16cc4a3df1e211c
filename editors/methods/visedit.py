"""VisEdit: a visual adapter whose strength per visual token is set by an influence mapper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.sites import Site
from editors.methods.adapter_editor import AdapterEditor
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.methods.influence_objective import (
    ATTRIBUTIONS,
    MAPPER_ROLES,
    Heat,
    mapper_losses,
    target_heat,
)
from editors.prefix.cached_dataset import CachedDataset
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.config import EditorConfig


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
