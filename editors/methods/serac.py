"""SERAC: edits kept beside the model, and a small model that answers the inputs in their scope.

`editors.methods.serac_networks` has the networks and their sources. The model's weights do not
change: an input out of scope passes it bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.forward.replay import capture
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, EditSignal
from editors.adapters.sites import Gate, MemoryEntry
from editors.base import Edit, encode_requests
from editors.io import save_tensors
from editors.methods.serac_edit import PROMPT, TARGET, ScopeGate, SERACEdit
from editors.methods.serac_networks import Counterfactual, Networks, Scope
from editors.methods.serac_objective import SERACConfig, SERACObjective
from editors.training.config import EditorConfig
from editors.training.editor import TrainableEditor
from editors.training.run import TrainingJob

NETWORKS = "nets.safetensors"


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
        return SERACObjective(job.vlm, *job.inputs([EMBED, layer]), job.config, nets, layer)

    def with_gate(self, gate: Gate | None) -> "SERAC":
        """The same counterfactual model behind another gate, or behind none."""
        return replace(self, gate=gate)

    @torch.no_grad()
    def edit(self, vlm: VLM, request: EditRequest) -> SERACEdit:
        """Encode a request: one forward pass over it."""
        batch = encode_requests(vlm, [request])
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


def networks(vlm: VLM, config: SERACConfig, seed: int) -> Networks:
    """Both untrained networks, on the device of the model's last layer.

    Raises:
        AttribError: The number of heads does not divide a width.
    """
    heads = config.num_heads
    for width in (config.width, config.scope_width):
        if width % (2 * heads):
            raise AttribError(
                f"a width of {width} for {heads} heads: expected a multiple of {2 * heads}"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answer = Counterfactual(vlm.d_model, config.width, config.num_layers, heads)
        scope = Scope(vlm.d_model, config.scope_width, config.scope_num_layers, heads)
    return Networks(answer, scope).to(execution_device(vlm.layers[vlm.num_layers - 1]))
