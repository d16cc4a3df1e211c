"""Editors that write hidden states through adapters: what VisEdit and DualEdit share."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import signal_layers
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import AdapterConfig, Gate, MemoryEntry, Site
from editors.base import Edit
from editors.gating.gates import NO_GATE, CosineGate, LearnedGate, check_gate, load_gate, save_gate
from editors.gating.training import fit_gate
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.methods.adapter_objective import AdapterObjective, trained_roles
from editors.methods.memorizing import encode_edit
from editors.prefix.cached_dataset import CachedDataset
from editors.prefix.streamed_dataset import StreamedDataset, cached_or_streamed
from editors.training.config import Preset, preset_for
from editors.training.held_out import held_out as split_off
from editors.training.losses import Weights
from editors.training.run import EditorTraining
from editors.training.watching import tensorboard as open_tensorboard

logger = logging.getLogger("attrib")
ADAPTERS, GATE = "adapters.safetensors", "gate"

Made = TypeVar("Made", bound="AdapterEditor")


@dataclass(frozen=True, eq=False)
class AdapterEditor:
    """Adapters at layers of one model, trained to serve any edit that they are shown.

    Attributes:
        vlm: The model they were trained for.
        adapters: Where they are, and their sizes.
        sites: The adapters themselves.
        gate: Decides which inputs are served; None serves all.
        trained: How they were trained: data, steps, loss; JSON.
    """

    name: ClassVar[str]
    needs_layers: ClassVar[bool] = True
    is_trained: ClassVar[bool] = True
    modalities: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    own_gate: ClassVar[str] = NO_GATE

    vlm: VLM
    adapters: AdapterConfig
    sites: Sequence[Site]
    gate: Gate | None = None
    trained: Mapping[str, Any] | None = None

    @classmethod
    def train(
        cls: "type[Made]",
        vlm: VLM,
        samples: Sequence[EditSample],
        *,
        layers: Mapping[str, Sequence[int]] | Any,
        out: str | Path,
        validation: Sequence[EditSample] | None = None,
        gate: str | None = None,
        preset: str | Preset = "auto",
        tensorboard: bool = False,
        keep: bool | None = None,
        **changes: Any,
    ) -> "Made":
        """Train adapters at `layers`; in the folder `out`, from where an interrupted run goes on.

        Args:
            vlm: The model; it stays frozen.
            samples: Edits to train on.
            layers: By modality the layers to write ({"text": [4], "visual": [2]}), or a
                `LayerReport`; modalities that this editor does not write are left out.
            out: Folder of checkpoints and of the trained editor.
            validation: Edits by which the best weights are picked; by default the last 5 % of
                `samples` (at most 100), which are then not trained on.
            gate: What decides which inputs are served: "none", "prompt_last", "sequence_last" (as
                published; reads the answer) or "learned"; by default the editor's own.
            preset: "published", "embedded", "embedded_phrases" (answers of many words), or "auto":
                by the size of the model and the length of the answers.
            tensorboard: Whether to write the curves for TensorBoard as well, into `out`.
            keep: Whether the states of all inputs at the first layer written are kept, which spares
                every step the layers before; by default where memory allows.
            changes: Settings other than the preset's: of `Training`, `Adapters` or `Weights`.

        Raises:
            AttribError: Layers that the model does not have, no samples, another run in `out`, a
                loss that is not finite.
        """
        chosen = {m: list(some) for m, some in _by_modality(layers).items() if m in cls.modalities}
        gate = cls.own_gate if gate is None else gate
        check_gate(gate)
        settings = preset_for(vlm, preset, samples, **{**cls.defaults, **changes})
        adapters = settings.adapters_at(chosen)
        sites = adapters.build(vlm, settings.training.seed)
        kept, held = split_off(samples, validation)
        layers_written = [site.layer for site in sites]
        data, held_out = cached_or_streamed(
            vlm,
            kept,
            held,
            first=[min(layers_written)],
            signals=signal_layers(adapters.signal, layers_written),
            roles=trained_roles(settings.weights, sites),
            keep=keep,
        )
        objective = cls.objective(vlm, adapters, sites, settings.weights, data, held_out, kept)
        given = (settings.training, settings.weights, kept, held, Path(out), {"adapters": adapters})
        fitting = EditorTraining(cls.name, vlm, *given)
        with open_tensorboard(Path(out)) if tensorboard else nullcontext() as watch:
            trained = fitting.run(objective, watch)
        with torch.enable_grad():
            fitted = fit_gate(gate, vlm, kept, min(layers_written))
        return fitting.saved(cls(vlm, adapters, sites, fitted, trained))

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
        """What is minimised on `data`, the inputs of `samples`."""
        del samples  # an editor that needs more than inputs and answers makes it from them
        return AdapterObjective(vlm, sites, data, held_out, weights, adapters)

    @property
    def module(self) -> nn.ModuleDict:
        """All adapters, by the key of their site."""
        return nn.ModuleDict({site.key: site.adapter for site in self.sites})

    def with_gate(self: "Made", gate: Gate | None) -> "Made":
        """The same adapters behind another gate."""
        deepest = max(gate.layers, default=-1) if gate is not None else -1
        first = min(site.layer for site in self.sites)
        if deepest > first:
            raise AttribError(
                f"the gate reads layer {deepest}, but layer {first} is written before it; a gate "
                f"may read layers 0 to {first}"
            )
        return replace(self, gate=gate)

    def edit(self, vlm: VLM, request: EditRequest) -> HiddenEdit:
        """The edit that serves a request: one forward pass over its image, prompt and target."""
        return HiddenEdit(
            self.sites, [encode_edit(vlm, self.adapters, self.sites, self.gate, request)], self.gate
        )

    def merge(self, edits: Sequence[Edit]) -> HiddenEdit:
        """Several edits at once: each input is served the nearest one, or none."""
        return self.from_memories([m for edit in edits for m in getattr(edit, "memories", ())])

    def from_memories(self, memories: Sequence[MemoryEntry]) -> HiddenEdit:
        """The edit of which these memories are kept."""
        return HiddenEdit(self.sites, memories, self.gate)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was trained: edits are of no use without just these."""
        return self.module.state_dict()

    def save(self, path: str | Path) -> None:
        """Write the adapters as safetensors, and all about them as JSON."""
        path = Path(path)
        about = {"adapters": asdict(self.adapters), "trained": self.trained}
        write_record(path, self.name, self.vlm, about)
        save_tensors(path / ADAPTERS, self.module.state_dict())
        if isinstance(self.gate, CosineGate | LearnedGate):
            save_gate(path / GATE, self.gate)
        else:
            shutil.rmtree(path / GATE, ignore_errors=True)  # of an earlier training into the folder

    @classmethod
    def load(cls: "type[Made]", path: str | Path, vlm: VLM) -> "Made":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was trained for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            adapters = AdapterConfig(**record["adapters"])
            editor = cls(vlm, adapters, adapters.build(vlm, seed=0), None, record["trained"])
            editor.module.load_state_dict(load_file(path / ADAPTERS))
        except (OSError, TypeError, RuntimeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error
        return editor.with_gate(load_gate(path / GATE)) if (path / GATE).exists() else editor


def _by_modality(layers: Any) -> Mapping[str, Sequence[int]]:
    return layers if isinstance(layers, Mapping) else layers.layers
