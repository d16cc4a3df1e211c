"""VisEdit: a visual adapter, steered by an influence mapper to what an edit's prompt asks about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.sites import AdapterConfig, Site
from editors.methods.adapter_editor import AdapterEditor
from editors.methods.adapter_objective import AdapterObjective
from editors.methods.influence_objective import ATTRIBUTIONS, Heat, mapper_losses, target_heat
from editors.prefix.cached_dataset import CachedDataset
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.losses import Weights


@dataclass(frozen=True, eq=False)
class VisEdit(AdapterEditor):
    """A visual adapter with an influence mapper (VisEdit, section 4).

    An input without an image passes it unchanged: text locality is 100 by construction. The
    ablations of its Table 3 are settings: `mapper=False` (- IM), `mapper_terms` without one of
    "mapper_up", "mapper_down", "mapper_attribution", and `signal="none"` (- CA).
    """

    name: ClassVar[str] = "visedit"
    modalities: ClassVar[tuple[str, ...]] = ("visual",)
    defaults: ClassVar[Mapping[str, Any]] = {"mapper": True}

    @classmethod
    def objective(
        cls,
        vlm: VLM,
        adapters: AdapterConfig,
        sites: Sequence[Site],
        weights: Weights,
        data: CachedDataset | StreamedDataset,
        held_out: CachedDataset,
        samples: Sequence[EditSample],
    ) -> AdapterObjective:
        """What is minimised: with a mapper, its terms as well."""
        plain = super().objective(vlm, adapters, sites, weights, data, held_out, samples)
        if not adapters.mapper or not weights.mapper_terms:
            return plain
        if len(sites) > 1:
            raise AttribError("VisEdit's influence mapper is for one layer: give one visual layer")
        how = ATTRIBUTIONS[adapters.mapper_target]
        return _MapperObjective(plain, target_heat(vlm, samples, sites[0].layer, how))


class _MapperObjective(AdapterObjective):
    """The loss of the adapter, and that of its influence mapper (VisEdit Eq. 20)."""

    def __init__(self, plain: AdapterObjective, heat: Sequence[Heat]):
        vars(self).update(vars(plain))
        self.heat = heat

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss on some edits."""
        data, at = self.data.load(items)
        heat = dict(zip(at, (self.heat[item] for item in items), strict=True))
        (site,) = self.sites
        return super().losses(items, rng) | mapper_losses(
            site.adapter, data, heat, at, site.layer, self.weights, rng
        )
