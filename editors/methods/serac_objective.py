"""What SERAC is trained on: the counterfactual model's answers, and which edit a question is of."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, pad_states
from editors.gating.inputs import COVERED
from editors.methods.adapter_objective import AdapterObjective, Tokens
from editors.methods.serac_config import SERACSettings
from editors.methods.serac_networks import Networks
from editors.methods.serac_scope import vectors
from editors.prefix.cached_dataset import CachedDataset
from editors.prefix.states import PrefixStates
from editors.prefix.streamed_dataset import StreamedDataset
from editors.training.losses import ROLES, Weights, asked_roles

SCOPE = "scope"  # the part of the loss that is the classifier's


class SERACObjective(AdapterObjective):
    """The loss of both networks (LiveEdit's form, with the direction of KL put right).

    Answers: cross-entropy for the request and its generality, KL(unedited || counterfactual) for
    locality, of text alone and with images. Scope: each question belongs to its own among the edits
    of the batch, or, if it is about none of them, to none.

    Args:
        vlm: The frozen model.
        nets: The counterfactual model and the classifier.
        layer: Whose states the classifier reads.
        data: Inputs to train on.
        held_out: Inputs to validate on.
        weights: Of the parts of the loss.
        settings: What else is set: the weight of the classifier's part, and units.
        batch_size: Edits in a pass over held-out data.
    """

    def __init__(
        self,
        vlm: VLM,
        nets: Networks,
        layer: int,
        data: CachedDataset | StreamedDataset,
        held_out: CachedDataset,
        weights: Weights,
        settings: SERACSettings,
        batch_size: int = 16,
    ):
        self.vlm, self.module, self.nets, self.layer = vlm, nets, nets, layer
        self.data, self.held_out, self.weights = data, held_out, weights
        self.scope_weight, self.batch_size = settings.scope_weight, batch_size
        self.roles = [role for role in ROLES if weights.of(role)]
        if settings.own_units:
            self._fit_units()

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss on some edits."""
        scope, _ = self.scope_loss(self.data, items)
        return {**super().losses(items, rng), SCOPE: self.scope_weight * scope}

    def validation(self) -> dict[str, float]:
        """As of adapters, and the share of questions that the classifier is right about."""
        numbers, size = super().validation(), self.batch_size
        starts = range(0, len(self.held_out), size)
        parts = [range(start, min(start + size, len(self.held_out))) for start in starts]
        found = [self.scope_loss(self.held_out, items) for items in parts]
        loss = float(np.mean([loss.item() for loss, _ in found]))
        right = float(np.mean([share for _, share in found]))
        return {**numbers, "loss": numbers["loss"] + self.scope_weight * loss, SCOPE: right}

    def tokens(
        self,
        data: CachedDataset | StreamedDataset,
        items: Sequence[int],
        roles: Sequence[str] | None = None,
    ) -> Tokens:
        """Logits of the counterfactual model and clean ones, labels and roles at answer tokens."""
        data, items = data.load(items)
        rows = data.rows(items, self.roles if roles is None else roles)
        edits = [data.edits[item] for item in items]
        parts = [rows.where(has_image) for has_image in (True, False)]
        found = [
            self._answers(part.inputs, [edits[i] for i in part.edit_of.tolist()], part.role_of)
            for part in parts
            if part.inputs
        ]
        return {name: torch.cat([tokens[name] for tokens in found]) for name in found[0]}

    def scope_loss(
        self, data: CachedDataset | StreamedDataset, items: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Cross-entropy of the classifier's choice, and the share of right ones."""
        data, items = data.load(items)
        rows, scope = data.rows(items, self.roles), self.nets.scope
        edits, queries = (
            vectors(scope, [(q.hidden[self.layer], q.spans) for q in some])
            for some in ([data.edits[item] for item in items], rows.inputs)
        )
        scores = scope.scores(queries, edits)
        scores = torch.cat([scores, scope.none.expand(len(scores), 1)], 1)
        covered = torch.tensor([ROLES[role] in COVERED for role in rows.role_of.tolist()])
        wanted = torch.where(covered, rows.edit_of, len(items)).to(scores.device)
        right = (scores.argmax(1) == wanted).float().mean().item()
        return nn.functional.cross_entropy(scores, wanted), right

    def _fit_units(self) -> None:
        answer, scope, edits = self.nets.answer, self.nets.scope, self.data.sample_edits()
        answer.units.fit(torch.cat([q.hidden[EMBED] for q in edits]))
        answer.units_out.fit(torch.cat([q.final for q in edits]))
        words = [q.hidden[self.layer][q.spans["text"] | q.spans["last"]] for q in edits]
        scope.units.fit(torch.cat(words))
        images = [q.hidden[self.layer][q.spans["visual"]] for q in edits]
        if shown := [image.float().mean(0) for image in images if len(image)]:
            scope.units_image.fit(torch.stack(shown))

    def _answers(
        self, queries: Sequence[PrefixStates], edits: Sequence[PrefixStates], roles: Tensor
    ) -> Tokens:
        labels = nn.utils.rnn.pad_sequence([q.labels for q in queries], True, IGNORE_INDEX)
        states = self.nets.answer(*placed(edits), *placed(queries))
        with torch.no_grad():
            clean = self.vlm.unembed(torch.cat([q.final for q in queries]))
        head = states[labels != IGNORE_INDEX].to(clean.dtype)
        return {
            "logits": self.vlm.unembed(head),
            "clean": clean,
            "labels": labels[labels != IGNORE_INDEX],
            "roles": asked_roles(labels, roles.to(labels.device)),
        }


def placed(queries: Sequence[PrefixStates]) -> tuple[Tensor, Tensor, Tensor]:
    """Input embeddings, their places from the last prompt token, and which are not padding."""
    states, real = pad_states([q.hidden[EMBED] for q in queries])
    last = torch.tensor([q.last for q in queries], device=states.device)
    return states, torch.arange(states.shape[1], device=states.device) - last[:, None], real
