"""Options and objective of SERAC: the counterfactual answers, and the classifier's choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.model.batch import IGNORE_INDEX
from editors.adapters.edit_signal import EMBED
from editors.gating.features import COVERED
from editors.methods.objective import EditObjective
from editors.methods.serac_edit import prompt_vectors
from editors.methods.serac_networks import Networks, pad_with_positions
from editors.training.config import SMALL_MODEL, TrainingConfig
from editors.training.dataset import CachedDataset, PrefixRows, StreamedDataset
from editors.training.losses import ROLES
from editors.training.prefix import PrefixStates

SCOPE = "scope"  # the classifier's term of the loss


class SERACConfig(TrainingConfig):
    """Options of SERAC: the sizes of its networks, and what the classifier reads.

    Attributes:
        width: Width of the counterfactual model (published: 768, OPT-125m's).
        num_layers: Its layers (12).
        num_heads: Its attention heads (12), and the classifier's.
        scope_width: Width of the classifier (768, BERT's).
        scope_num_layers: Its layers (12).
        scope_layer: The layer of the model whose states it reads; None for the middle one.
        scope_weight: Weight of its term of the loss.
        own_units: Whether both networks see every channel standardised over the training edits,
            and answers are made in these units (not published): single channels of large models
            hide the others.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "published": {},  # sizes and rate; unlike published, the networks are not pre-trained
        "embedded": {
            **SMALL_MODEL,
            "steps": 800,
            "learning_rate": 5e-3,  # at 2e-2 no phrase is copied after 400 steps: LOG.md
            "clip": 1.0,
            # Unrelated inputs are the classifier's task. Learning them costs the small model the
            # rest: it would have to be a second vision-language model (LOG.md).
            "locality": 0.01,
            "width": 128,
            "num_layers": 3,
            "num_heads": 4,
            "scope_width": 128,
            "scope_num_layers": 2,
            "own_units": True,
        },
    }

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    scope_width: int = 768
    scope_num_layers: int = 12
    scope_layer: int | None = None
    scope_weight: float = 1.0
    own_units: bool = False


@dataclass(eq=False)
class SERACObjective(EditObjective):
    """The loss of both networks (LiveEdit's form, with the direction of KL corrected).

    Answers: cross-entropy for the request and its generality, KL(unedited || counterfactual) for
    locality. Scope: each input is classified as one of the batch's edits, or as none.

    Attributes:
        nets: The counterfactual model and the classifier.
        layer: The layer whose states the classifier reads.
    """

    nets: Networks
    layer: int

    def __post_init__(self):
        self.module = self.nets
        if self.config.own_units:
            self._fit_units()

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss on some edits."""
        scope, _ = self.scope_loss(self.data, items)
        return {**super().losses(items, rng), SCOPE: self.config.scope_weight * scope}

    def validation(self) -> dict[str, float]:
        """The loss and accuracies of answers, and the accuracy of the classifier."""
        metrics = super().validation()
        found = [self.scope_loss(self.held_out, items) for items in self.held_out_batches()]
        loss = float(np.mean([loss.item() for loss, _ in found]))
        accuracy = float(np.mean([share for _, share in found]))
        return {
            **metrics,
            "loss": metrics["loss"] + self.config.scope_weight * loss,
            SCOPE: accuracy,
        }

    def edits(self, data: CachedDataset, items: Sequence[int]) -> list[PrefixStates]:
        """The edits' own states."""
        return [data.edits[item] for item in items]

    def logits(
        self, rows: PrefixRows, edits: Sequence[PrefixStates]
    ) -> Float[Tensor, "token d_vocab"]:
        """Logits of the counterfactual model at the answer tokens, row by row."""
        own = [edits[i] for i in rows.edit_of.tolist()]
        states = self.nets.answer(*_embeddings(own), *_embeddings(rows.inputs))
        labels = nn.utils.rnn.pad_sequence([q.labels for q in rows.inputs], True, IGNORE_INDEX)
        dtype = rows.inputs[0].final.dtype
        return self.vlm.unembed(states[labels != IGNORE_INDEX].to(dtype))

    def scope_loss(
        self, data: CachedDataset | StreamedDataset, items: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Cross-entropy of the classifier's choice of edit, and its accuracy."""
        data, items = data.load(items)
        rows, scope = data.rows(items, self.roles), self.nets.scope
        edits, queries = (
            prompt_vectors(scope, [(q.hidden[self.layer], q.spans) for q in some])
            for some in (self.edits(data, items), rows.inputs)
        )
        scores = scope.scores(queries, edits)
        scores = torch.cat([scores, scope.none.expand(len(scores), 1)], 1)
        covered = torch.tensor([ROLES[role] in COVERED for role in rows.role_of.tolist()])
        wanted = torch.where(covered, rows.edit_of, len(items)).to(scores.device)
        accuracy = (scores.argmax(1) == wanted).float().mean().item()
        return nn.functional.cross_entropy(scores, wanted), accuracy

    def _fit_units(self) -> None:
        answer, scope, edits = self.nets.answer, self.nets.scope, self.data.sample_edits()
        answer.units.fit(torch.cat([q.hidden[EMBED] for q in edits]))
        answer.units_out.fit(torch.cat([q.final for q in edits]))
        words = [q.hidden[self.layer][q.spans["text"] | q.spans["last"]] for q in edits]
        scope.units.fit(torch.cat(words))
        images = [q.hidden[self.layer][q.spans["visual"]] for q in edits]
        if means := [image.float().mean(0) for image in images if len(image)]:
            scope.units_image.fit(torch.stack(means))


def _embeddings(inputs: Sequence[PrefixStates]) -> tuple[Tensor, Tensor, Tensor]:
    return pad_with_positions([q.hidden[EMBED] for q in inputs], [q.last for q in inputs])
