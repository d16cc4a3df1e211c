"""What editors that turn gradients into changes are trained on: passes under the changes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.methods.adapter_objective import AdapterObjective, Tokens
from editors.prefix.cached_dataset import CachedDataset, PrefixRows
from editors.prefix.states import collate
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.losses import ROLES, Weights, asked_roles
from editors.weights.mlp import Matrix
from editors.weights.rank1_update import LowRankUpdate, TokenGradients, changed, token_gradients

Conditions = Mapping[str, Tensor]  # by the name of a sample, what the editor reads of its words


class ChangesOf(Protocol):
    """A network that turns gradients of requests into changes of matrices."""

    def __call__(
        self, gradients: Mapping[str, TokenGradients], conditions: Sequence[Tensor]
    ) -> dict[str, LowRankUpdate]:
        """By matrix a change for each request."""
        ...


class HypernetworkObjective(AdapterObjective):
    """The loss of such a network on edits (MEND, section 3; the terms are those of `Weights`).

    Args:
        vlm: The frozen model.
        matrices: What is changed.
        net: The network.
        data: Inputs to train on, run up to `first`.
        held_out: Inputs to validate on.
        weights: Of the parts of the loss.
        first: The layer whose outputs are kept: all behind it are run again.
        conditions: What the network reads of each sample's words.
        batch_size: Edits in a pass over held-out data.
    """

    def __init__(
        self,
        vlm: VLM,
        matrices: Sequence[Matrix],
        net: nn.Module,
        data: CachedDataset | StreamedDataset,
        held_out: CachedDataset,
        weights: Weights,
        first: int,
        conditions: Conditions,
        batch_size: int = 16,
    ):
        self.vlm, self.matrices, self.module = vlm, matrices, net
        self.data, self.held_out, self.weights = data, held_out, weights
        self.first, self.conditions, self.batch_size = first, conditions, batch_size
        self.roles = [role for role in ROLES if weights.of(role)]

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss on some edits; a network that keeps statistics does so."""
        self.module.train()
        parts = super().losses(items, rng)
        self.module.eval()
        return parts

    def changes(self, data: CachedDataset, items: Sequence[int]) -> dict[str, LowRankUpdate]:
        """By matrix the changes that the network makes for some edits."""
        edits = collate([data.edits[item] for item in items], self.first)
        run = partial(edits.run, self.vlm, {})
        gradients = token_gradients(self.vlm, self.matrices, run, edits.labels)
        return self.module(gradients, [self.conditions[data.ids[item]] for item in items])

    def tokens(
        self,
        data: CachedDataset | StreamedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """Logits, edited and clean, labels and roles at all answer tokens of some edits."""
        data, items = data.load(items)
        return self.tokens_under(self.changes(data, items), data, items, roles)

    def tokens_under(
        self,
        changes: Mapping[str, LowRankUpdate],
        data: CachedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """The same, under changes that are at hand."""
        rows = data.rows(items, self.roles if roles is None else roles)
        # Inputs with and without an image differ in length: apart, they need less padding.
        parts = [self._under(changes, part) for part in (rows.where(True), rows.where(False))]
        parts = [part for part in parts if part]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _under(self, changes: Mapping[str, LowRankUpdate], rows: PrefixRows) -> Tokens:
        if not rows.inputs:
            return {}
        inputs = collate(rows.inputs, self.first)
        own = {name: change.rows(rows.edit_of) for name, change in changes.items()}
        with changed(self.matrices, own):
            logits = self.vlm.unembed(inputs.run(self.vlm, {}))
        with torch.no_grad():
            clean = self.vlm.unembed(torch.cat([q.final for q in rows.inputs]))
        return {
            "logits": logits,
            "clean": clean,
            "labels": inputs.labels[inputs.labels != IGNORE_INDEX],
            "roles": asked_roles(inputs.labels, rows.role_of.to(inputs.labels.device)),
        }
