"""SERAC: edits kept beside the model, and a small model that answers what they are about.

See `editors.methods.serac_networks` for the networks and their sources. The model's weights do not
change: a question out of scope passes it untouched, to the last bit.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import read
from attrib.forward.replay import capture
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, EditSignal
from editors.adapters.sites import Gate, MemoryEntry
from editors.base import Edit, encode_requests
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.methods.serac_config import PRESETS, SERACSettings, networks, scope_layer
from editors.methods.serac_edit import PROMPT, TARGET, SERACEdit
from editors.methods.serac_networks import Counterfactual, Networks
from editors.methods.serac_objective import SERACObjective
from editors.methods.serac_scope import ScopeGate
from editors.prefix.streamed_dataset import cached_or_streamed
from editors.training.held_out import held_out
from editors.training.losses import ROLES, Weights
from editors.training.run import EditorTraining
from editors.training.settings import refuse_gate, refuse_layers, settings_of

logger = logging.getLogger("attrib")
NETS = "nets.safetensors"


@dataclass(frozen=True, eq=False)
class SERAC:
    """A scope classifier and a counterfactual model for one model.

    Attributes:
        vlm: The model they were trained for.
        settings: Their sizes.
        answer: The counterfactual model.
        gate: The classifier, with its threshold; None takes every question for one in scope.
        trained: How they were trained: data, steps, loss; JSON.
    """

    name: ClassVar[str] = "serac"
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True

    vlm: VLM
    settings: SERACSettings
    answer: Counterfactual
    gate: Gate | None
    trained: Mapping[str, Any] | None = None

    @classmethod
    def train(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample],
        *,
        out: str | Path,
        layers: Any = None,
        gate: str | None = None,
        preset: str = "auto",
        validation: Sequence[EditSample] | None = None,
        keep: bool | None = None,
        **changes: Any,
    ) -> "SERAC":
        """Train both networks; in the folder `out`, from where an interrupted run goes on.

        Args:
            vlm: The model; it stays frozen.
            samples: Edits to train on.
            out: Folder of checkpoints and of the trained editor.
            layers: Not used: no layer is written but the last, where its answer is replaced.
            gate: Not used: the classifier is part of the editor (`with_gate(None)` for none).
            preset: "published", "embedded", or "auto": by the size of the model.
            validation: Edits by which the best weights are picked and the threshold is found; by
                default the last 5 % of `samples` (at most 100), which are then not trained on.
            keep: Whether the states of all inputs are kept in memory; by default if they fit.
            changes: Settings other than the preset's: of `Training`, `Weights`, `SERACSettings`.

        Raises:
            AttribError: Unknown settings, no samples, another run in `out`, a loss that is not
                finite.
        """
        refuse_layers(cls.name, layers, "a model of its own answers")
        refuse_gate(cls.name, gate)
        training, weights, settings = settings_of(vlm, PRESETS, preset, changes)
        layer = scope_layer(vlm, settings)
        kept, held = held_out(samples, validation)
        nets = networks(vlm, settings, training.seed)
        objective = _objective(vlm, nets, settings, weights, kept, held, keep)
        given = (training, weights, kept, held, Path(out), {"settings": settings})
        fitting = EditorTraining(cls.name, vlm, *given)
        trained = fitting.run(objective)
        scope = ScopeGate(nets.eval().scope, layer, 0.0).calibrated(vlm, held)
        return fitting.saved(cls(vlm, settings, nets.eval().answer, scope, trained))

    def with_gate(self, gate: Gate | None) -> "SERAC":
        """The same counterfactual model behind another gate, or behind none."""
        return replace(self, gate=gate)

    @torch.no_grad()
    def edit(self, vlm: VLM, request: EditRequest) -> SERACEdit:
        """The edit that keeps a request: one pass over it."""
        batch = encode_requests(vlm, [request])
        layers = () if self.gate is None else self.gate.layers
        with read(vlm, layers) as hidden, capture(vlm) as captured:
            vlm.logits(batch)
        states, end = captured.embed[0], int(batch["last"][0].int().argmax()) + 1
        parts = {PROMPT: states[:end], TARGET: states[end:]}
        signals = {
            kind: EditSignal(one.clone(), states[end - 1].clone()) for kind, one in parts.items()
        }
        kept = {} if self.gate is None else self.gate.states(hidden, batch)[0]
        return SERACEdit(self.answer, [MemoryEntry(request, signals, kept)], self.gate)

    def merge(self, edits: Sequence[Edit]) -> SERACEdit:
        """Several edits at once: each question is answered by the nearest one, if by any."""
        return self.from_memories([m for edit in edits for m in getattr(edit, "memories", ())])

    def from_memories(self, memories: Sequence[MemoryEntry]) -> SERACEdit:
        """The edit of which these memories are kept."""
        return SERACEdit(self.answer, memories, self.gate)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was trained: edits are of no use without just these."""
        if not isinstance(self.gate, ScopeGate):
            return self.answer.state_dict()
        return Networks(self.answer, self.gate.net).state_dict()

    def save(self, path: str | Path) -> None:
        """Write both networks as safetensors, and all about them as JSON.

        Raises:
            AttribError: It is behind a gate of another kind.
        """
        scope = self.gate
        if not isinstance(scope, ScopeGate):
            raise AttribError("serac is saved with its own classifier; put that gate back first")
        path = Path(path)
        about = {
            "settings": asdict(self.settings),
            "threshold": scope.threshold,
            "calibration": dict(scope.record),
            "trained": self.trained,
        }
        write_record(path, self.name, self.vlm, about)
        save_tensors(path / NETS, self.tensors)

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "SERAC":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was trained for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            settings = SERACSettings(**record["settings"])
            nets = networks(vlm, settings, seed=0)
            nets.load_state_dict(load_file(path / NETS))
            threshold, found = record["threshold"], record["calibration"]
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error
        scope = ScopeGate(nets.eval().scope, scope_layer(vlm, settings), threshold, found)
        return cls(vlm, settings, nets.eval().answer, scope, record["trained"])


def _objective(
    vlm: VLM,
    nets: Networks,
    settings: SERACSettings,
    weights: Weights,
    samples: Sequence[EditSample],
    held: Sequence[EditSample],
    keep: bool | None = None,
) -> SERACObjective:
    read_at = [EMBED, scope_layer(vlm, settings)]
    roles = [role for role in ROLES if role == "request" or weights.of(role)]
    data, rest = cached_or_streamed(
        vlm, samples, held, first=read_at, signals=read_at, roles=roles, keep=keep
    )
    return SERACObjective(vlm, nets, read_at[1], data, rest, weights, settings)
