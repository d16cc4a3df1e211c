"""What adapters are trained on: edited passes from the first site on, against their answers."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EditSignal, EditSignalBatch, pad_signals
from editors.adapters.sites import AdapterConfig, Site
from editors.prefix.cached_dataset import CachedDataset, PrefixRows
from editors.prefix.states import Intervention, PrefixStates, collate
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.losses import ROLES, Weights, agreement, answer_losses, asked_roles

Tokens = dict[str, Tensor]


class AdapterObjective:
    """The loss of adapters on edits (VisEdit Eqs. 13-15, DualEdit App. A).

    Args:
        vlm: The frozen model.
        sites: The adapters.
        data: Inputs to train on, run up to the first site.
        held_out: Inputs to validate on.
        weights: Of the parts of the loss.
        adapters: What the adapters are, and what they attend to.
        batch_size: Edits in a pass over held-out data.
    """

    def __init__(
        self,
        vlm: VLM,
        sites: Sequence[Site],
        data: CachedDataset | StreamedDataset,
        held_out: CachedDataset,
        weights: Weights,
        adapters: AdapterConfig,
        batch_size: int = 16,
    ):
        self.vlm, self.sites, self.data, self.held_out = vlm, sites, data, held_out
        self.weights, self.batch_size = weights, batch_size
        self.adapters = adapters
        self.first = min(site.layer for site in sites)
        self.module = nn.ModuleDict({site.key: site.adapter for site in sites})
        self.roles = trained_roles(weights, sites)
        if adapters.own_units:
            self._fit_units()

    @property
    def num_items(self) -> int:
        """Number of edits to train on."""
        return len(self.data)

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss on some edits."""
        del rng  # nothing is random here but the edits
        return answer_losses(**self.tokens(self.data, items), weights=self.weights)

    def shares(self, some: Sequence[int], items: Sequence[int]) -> dict[str, float]:
        """Which share of the answer tokens of `items` is in `some` of them, by role."""
        return self.data.shares(some, items, self.roles)

    def validation(self) -> dict[str, float]:
        """The loss on held-out edits, and per role the share of tokens that are as they should."""
        parts: dict[str, list[float]] = {}
        shares: dict[str, list[float]] = {}
        for start in range(0, len(self.held_out), self.batch_size):
            items = range(start, min(start + self.batch_size, len(self.held_out)))
            tokens = self.tokens(self.held_out, items)
            for name, value in answer_losses(**tokens, weights=self.weights).items():
                parts.setdefault(name, []).append(value.item())
            for name, value in agreement(**tokens).items():
                shares.setdefault(name, []).append(value)
        loss = sum(float(np.mean(values)) for values in parts.values())
        return {"loss": loss} | {name: float(np.mean(v)) for name, v in shares.items()}

    def tokens(
        self,
        data: CachedDataset | StreamedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """Logits, edited and clean, labels and roles at all answer tokens of some edits.

        Args:
            data: The inputs.
            items: Which edits.
            roles: The kinds of input, by default those that are trained on.
        """
        data, items = data.load(items)
        rows = data.rows(items, self.roles if roles is None else roles)
        edits = [data.edits[item] for item in items]
        parts = [self._pass(part, edits) for part in (rows.where(True), rows.where(False))]
        parts = [part for part in parts if part]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _pass(self, rows: PrefixRows, edits: Sequence[PrefixStates]) -> Tokens:
        if not rows.inputs:
            return {}
        prefixes = collate(rows.inputs, self.first)
        interventions: dict[int, list[Intervention]] = {}
        for site in self.sites:
            at = site.positions(prefixes.spans)
            if bool(at.any()):
                signals = self.signals(site, edits, rows.edit_of)
                interventions.setdefault(site.layer, []).append(_move(site.adapter, at, signals))
        with torch.no_grad():
            clean = self.vlm.unembed(torch.cat([q.final for q in rows.inputs]))
        return {
            "logits": self.vlm.unembed(prefixes.run(self.vlm, interventions)),
            "clean": clean,
            "labels": prefixes.labels[prefixes.labels != IGNORE_INDEX],
            "roles": asked_roles(prefixes.labels, rows.role_of.to(prefixes.labels.device)),
        }

    def _fit_units(self) -> None:
        edits = self.data.sample_edits()
        for site in self.sites:
            site.adapter.units.fit(torch.cat([q.hidden[site.layer] for q in edits]))
            shown = [self._signal(site, q).states for q in edits]
            site.adapter.units_edit.fit(torch.cat(shown))

    def _signal(self, site: Site, edit: PrefixStates) -> EditSignal:
        return self.adapters.signal_at(site.layer, edit.hidden, edit.last)

    def signals(
        self, site: Site, edits: Sequence[PrefixStates], edit_of: Int[Tensor, " batch"]
    ) -> EditSignalBatch:
        """What the adapter at a site sees, for inputs that belong to the edits `edit_of`."""
        return pad_signals([self._signal(site, q) for q in edits]).rows(edit_of)


def trained_roles(weights: Weights, sites: Sequence[Site]) -> list[str]:
    """The kinds of input that adapters at these sites can change, and are to be trained on."""
    text = any(site.modality == "text" for site in sites)
    # An input without an image is nothing to a visual adapter (VisEdit's T-Loc is 100 by design).
    return [role for role in ROLES if weights.of(role) and (text or role != "text_locality")]


def _move(
    adapter: Callable[[Tensor, EditSignalBatch], Tensor],
    at: Bool[Tensor, "batch pos"],
    signals: EditSignalBatch,
) -> Intervention:
    """What writes at the positions of a site, and looks at no more positions than it must."""
    columns = at.any(0).nonzero()[:, 0]
    start, stop = int(columns[0]), int(columns[-1]) + 1

    def move(h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        some = h[:, start:stop]
        new = torch.where(at[:, start:stop, None], adapter(some, signals), some)
        return torch.cat([h[:, :start], new, h[:, stop:]], 1)

    return move
