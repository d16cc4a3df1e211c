"""SERAC: edits kept beside the model, and a small model that answers the inputs in their scope.

`editors.methods.serac_networks` has the options, the networks and their sources. The model's
weights do not change: an input out of scope passes it bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.forward.replay import capture
from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, EditSignal
from editors.adapters.sites import Gate, MemoryEntry
from editors.base import Edit
from editors.gating.features import COVERED
from editors.io import save_tensors
from editors.methods.objective import EditObjective, mean_of_parts
from editors.methods.serac_edit import PROMPT, TARGET, ScopeGate, SERACEdit, prompt_vectors
from editors.methods.serac_networks import (
    Counterfactual,
    Networks,
    SERACConfig,
    networks,
    pad_with_positions,
)
from editors.training.config import EditorConfig
from editors.training.dataset import CachedDataset, PrefixRows, StreamedDataset
from editors.training.editor import TrainableEditor
from editors.training.losses import LOCALITY, ROLES
from editors.training.prefix import PrefixStates
from editors.training.run import TrainingJob

NETWORKS = "nets.safetensors"
SCOPE = "scope"  # the classifier's term of the loss


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
        batches = self.held_out_batches()
        found = [(*self.scope_loss(self.held_out, items), len(items)) for items in batches]
        loss = mean_of_parts([(loss.item(), num) for loss, _, num in found])
        accuracy = mean_of_parts([(share, num) for _, share, num in found])
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
        dtype = rows.inputs[0].hidden[EMBED].dtype
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
        answer.units.fit(q.hidden[EMBED] for q in edits)
        answer.units_out.fit(q.final for q in edits if q.final is not None)
        scope.units.fit(q.hidden[self.layer][q.spans["text"] | q.spans["last"]] for q in edits)
        images = (q.hidden[self.layer][q.spans["visual"]] for q in edits)
        scope.units_image.fit(image.float().mean(0, True) for image in images if len(image))


@dataclass(frozen=True, eq=False, repr=False)
class SERAC(TrainableEditor):
    """A scope classifier and a counterfactual model for one model.

    Attributes:
        answer: The counterfactual model.
        gate: The classifier, with its threshold; None takes every input to be in scope.
    """

    name: ClassVar[str] = "serac"
    writes_no_layer: ClassVar[str] = "a model of its own answers"
    config_class: ClassVar[type[EditorConfig]] = SERACConfig

    answer: Counterfactual
    gate: Gate | None

    @classmethod
    def _train(cls, job: TrainingJob) -> "SERAC":
        vlm, config = job.vlm, job.config
        layer, nets = scope_layer(vlm, config), networks(vlm, config, config.seed)
        objective = cls.objective(job, nets)
        trained = job.fit(objective, settings=config.settings())
        scope = ScopeGate(nets.eval().scope, layer, 0.0).calibrated(vlm, job.split[1])
        return cls(vlm, config, nets.eval().answer, scope, trained=trained)

    @classmethod
    def objective(cls, job: TrainingJob, nets: Networks) -> SERACObjective:
        """The loss of the networks on a job's data."""
        layer = scope_layer(job.vlm, job.config)
        # The units of the answers' states are those of the requests.
        compared = ["request", *LOCALITY] if job.config.own_units else LOCALITY
        inputs = job.inputs([EMBED, layer], compared=compared)
        return SERACObjective(job.vlm, *inputs, job.config, nets, layer)

    def with_gate(self, gate: Gate | None) -> "SERAC":
        """The same counterfactual model behind another gate, or behind none."""
        return replace(self, gate=gate)

    @torch.no_grad()
    def edit(self, vlm: VLM, request: EditRequest) -> SERACEdit:
        """Encode a request: one forward pass over it."""
        batch = self.encode(vlm, request)
        layers = () if self.gate is None else self.gate.layers
        with read(vlm, layers) as hidden, capture(vlm) as captured:
            vlm.logits(batch)
        states, end = captured.embed[0], int(batch["last"][0].int().argmax()) + 1
        parts = {PROMPT: states[:end], TARGET: states[end:]}
        signals = {
            kind: EditSignal(one.clone(), states[end - 1].clone()) for kind, one in parts.items()
        }
        features = {} if self.gate is None else self.gate.states(hidden, batch)[0]
        return self.from_memories([MemoryEntry(request, signals, features)])

    def merge(self, edits: Sequence[Edit]) -> SERACEdit:
        """Several edits as one: the nearest edit in scope, if any, answers each input."""
        return self.from_memories([m for edit in edits for m in getattr(edit, "memories", ())])

    def from_memories(self, memories: Sequence[MemoryEntry]) -> SERACEdit:
        """The edit of encoded requests."""
        return SERACEdit(self.answer, memories, self.gate)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors, to which its edits belong."""
        if not isinstance(self.gate, ScopeGate):
            return self.answer.state_dict()
        return Networks(self.answer, self.gate.net).state_dict()

    def _record(self) -> dict[str, Any]:
        if not isinstance(self.gate, ScopeGate):
            raise AttribError("serac is saved with its own classifier; put that gate back first")
        return {
            "settings": self.config.settings(),
            "threshold": self.gate.threshold,
            "calibration": dict(self.gate.record),
        }

    def _save_tensors(self, path: Path) -> None:
        save_tensors(path / NETWORKS, self.tensors)

    @classmethod
    def _load(cls, vlm: VLM, record: Mapping[str, Any], path: Path) -> "SERAC":
        config = SERACConfig.from_record(record)
        nets = networks(vlm, config, seed=0)
        nets.load_state_dict(load_file(path / NETWORKS))
        threshold, calibration = record["threshold"], record["calibration"]
        scope = ScopeGate(nets.eval().scope, scope_layer(vlm, config), threshold, calibration)
        return cls(vlm, config, nets.answer, scope, trained=record["trained"])


def scope_layer(vlm: VLM, config: SERACConfig) -> int:
    """The layer whose states the classifier reads.

    Raises:
        AttribError: The model has no such layer.
    """
    layer = config.scope_layer
    if layer is not None and not 0 <= layer < vlm.num_layers:
        raise AttribError(f"scope_layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    return vlm.num_layers // 2 if layer is None else layer


def _embeddings(inputs: Sequence[PrefixStates]) -> tuple[Tensor, Tensor, Tensor]:
    return pad_with_positions([q.hidden[EMBED] for q in inputs], [q.last for q in inputs])
