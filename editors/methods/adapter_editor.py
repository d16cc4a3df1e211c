"""Editors that write hidden states through adapters: what they share, and DualEdit."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.replay import capture
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, EditSignal, signal_layers
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import Gate, MemoryEntry, Site
from editors.base import Edit, encode_requests
from editors.gating.gated_editor import gate_features
from editors.gating.gates import (
    NO_GATE,
    CosineGate,
    LearnedGate,
    check_gate,
    load_gate,
    save_gate,
)
from editors.gating.training import fit_gate
from editors.io import save_tensors
from editors.methods.adapter_gate import refuse_ended, refuse_shallow
from editors.methods.adapter_objective import (
    AdapterConfig,
    AdapterObjective,
    adapters_of,
    trained_roles,
)
from editors.training.config import EditorConfig
from editors.training.dataset import CachedDataset, StreamedDataset
from editors.training.editor import TrainableEditor
from editors.training.end_token import without_end_tokens
from editors.training.presets import Preset
from editors.training.run import TrainingJob

ADAPTERS, GATE = "adapters.safetensors", "gate"

Made = TypeVar("Made", bound="AdapterEditor")


@dataclass(frozen=True, eq=False, repr=False)
class AdapterEditor(TrainableEditor):
    """Adapters at layers of one model, trained to apply any edit that they are given.

    Attributes:
        layers: The layers whose output they write, by modality, counted from 0.
        sites: The adapters.
        gate: Decides which inputs an edit applies to; None applies it to all.
    """

    needs_layers: ClassVar[bool] = True
    takes_gate: ClassVar[bool] = True
    config_class: ClassVar[type[EditorConfig]] = AdapterConfig
    modalities: ClassVar[tuple[str, ...]]

    layers: Mapping[str, Sequence[int]]
    sites: Sequence[Site]
    gate: Gate | None = None

    @classmethod
    def _train(cls: "type[Made]", job: TrainingJob) -> "Made":
        vlm, config = job.vlm, job.config
        gate = config.gate if job.gate is None else job.gate
        check_gate(gate)
        by_modality = getattr(job.layers, "layers", job.layers) or {}
        layers = {m: list(some) for m, some in by_modality.items() if m in cls.modalities}
        sites = config.build(vlm, layers, config.seed)
        written = [site.layer for site in sites]
        if not config.shallow_gate:
            refuse_shallow(gate, min(written), vlm)
        signals, roles = signal_layers(config.signal, written), cls.needed_roles(config, sites)
        data, validation = job.inputs([min(written)], signals, roles)
        objective = cls.objective(vlm, config, sites, data, validation, job.split[0])
        trained = job.fit(objective, adapters={"layers": layers, **config.settings()})
        with torch.enable_grad():
            options = {} if gate in (NO_GATE, "learned") else {"threshold": config.gate_threshold}
            # As inputs are when the editor is used and scored: no answer ends with the end token.
            asked = without_end_tokens(vlm, job.split[0]) if config.end_token else job.split[0]
            fitted = fit_gate(gate, vlm, asked, min(written), seed=config.seed, **options)
        return cls(vlm, config, layers, sites, fitted, trained=trained)

    @classmethod
    def needed_roles(cls: "type[Made]", config: AdapterConfig, sites: Sequence[Site]) -> list[str]:
        """The kinds of input that training reads; edits are made of the request's states."""
        return list(dict.fromkeys(["request", *trained_roles(config, sites)]))

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
        """The loss on `data`, the inputs of `samples`."""
        del samples  # needed by editors whose loss is not on inputs and answers alone
        return AdapterObjective(vlm, data, held_out, config, sites)

    @property
    def module(self) -> nn.ModuleDict:
        """All adapters, by the key of their site."""
        return adapters_of(self.sites)

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
        """Encode a request: a pass over its image, prompt and target, up to the last site."""
        return self.from_memories([self._encode(vlm, request)])

    @torch.no_grad()
    def _encode(self, vlm: VLM, request: EditRequest) -> MemoryEntry:
        batch, read = self.encode(vlm, request), () if self.gate is None else self.gate.layers
        layers = {site.layer for site in self.sites} | set(read)
        with capture(vlm) as captured:
            hidden = states_up_to(vlm, batch, sorted(layers))
        hidden[EMBED] = captured.embed
        of_edit = {layer: h[0] for layer, h in hidden.items()}
        last = int(batch["last"][0].int().argmax())
        signals = {}
        for site in self.sites:
            signal = self.config.signal_at(site.layer, of_edit, last)
            signals[site.key] = EditSignal(signal.states.clone(), signal.last.clone())
        return MemoryEntry(request, signals, self._features(vlm, request, batch, hidden))

    def _features(
        self, vlm: VLM, request: EditRequest, batch: Batch, hidden: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        """What the gate compares inputs with, given the request as it is edited and its states."""
        if self.gate is None:
            return {}
        if self.config.end_token and getattr(self.gate, "reads_target", False):
            # The answers of the inputs do not end with the end token.
            return gate_features(vlm, self.gate, encode_requests(vlm, [request]))[0]
        return gate_features(vlm, self.gate, batch, hidden)[0]

    def merge(self, edits: Sequence[Edit]) -> HiddenEdit:
        """Several edits as one: the nearest edit, or none, applies to each input."""
        return self.from_memories([m for edit in edits for m in getattr(edit, "memories", ())])

    def from_memories(self, memories: Sequence[MemoryEntry]) -> HiddenEdit:
        """The edit of encoded requests."""
        return HiddenEdit(self.sites, memories, self.gate)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors, to which its edits belong."""
        return self.module.state_dict()

    def _record(self) -> dict[str, Any]:
        return {"adapters": {"layers": dict(self.layers), **self.config.settings()}}

    def _save_tensors(self, path: Path) -> None:
        save_tensors(path / ADAPTERS, self.tensors)
        if isinstance(self.gate, CosineGate | LearnedGate):
            save_gate(path / GATE, self.gate)
        else:
            shutil.rmtree(path / GATE, ignore_errors=True)  # of an earlier training into the folder

    @classmethod
    def _load(cls: "type[Made]", vlm: VLM, record: Mapping[str, Any], path: Path) -> "Made":
        options = dict(record["adapters"])
        layers = options.pop("layers")
        config = cls.config_class.from_record({**record, "settings": options})
        assert isinstance(config, AdapterConfig)
        editor = cls(
            vlm, config, layers, config.build(vlm, layers, 0), None, trained=record["trained"]
        )
        editor.module.load_state_dict(load_file(path / ADAPTERS))
        if not (path / GATE).exists():
            return editor
        gate = load_gate(path / GATE)
        if config.end_token:
            refuse_ended(gate, path)
        return editor.with_gate(gate)


PROGRAM = {"init": "published", "gate": "sequence_last", "validate_every": 1000, "save_every": 1000}
SELECTION = {
    "weights kept": "those of the smallest loss on held-out edits (program: by hand, of the "
    "smallest moving average of the training loss)",
    "order of edits": "seeded, each once per epoch (program: seeded by the time)",
}


class DualEditConfig(AdapterConfig):
    """Options of DualEdit: those of adapters, with the settings of its paper and its program."""

    presets: ClassVar[Mapping[str, Preset]] = {
        **AdapterConfig.presets,
        "dualedit-paper": Preset(
            "DualEdit, sections 3-4, App. A and D (LLaVA-1.5: text 16, visual 19; BLIP-2 the same, "
            "with `gate_threshold=0.8`)",
            {**PROGRAM, "gate_threshold": 0.6},
            {
                "form of the adapter": "that of the program: layer norms, 8 heads, a residual "
                "(section 3.2 writes one head without norms, which replaces the states)",
                **SELECTION,
            },
        ),
        "dualedit-code": Preset(
            "zhiyiscs/DualEdit, `configs/vead/*.yaml` and `adpt_model.py`",
            {**PROGRAM, "gate_threshold": 0.8, "text_locality": 0.0},
            {
                "unused influence mapper": "not built (program: built and never called)",
                "end of the prompt": "each input's own (program: set by an evaluator that was "
                "never published)",
                **SELECTION,
            },
        ),
    }


@dataclass(frozen=True, eq=False, repr=False)
class DualEdit(AdapterEditor):
    """Text and visual adapters (DualEdit, section 4); one modality alone is an ablation (Table 1).

    Trained without the gate, as published. Text-only locality is part of the loss, as in the
    paper; the published code leaves it out, and without a gate T-Loc then falls.
    """

    name: ClassVar[str] = "dualedit"
    modalities: ClassVar[tuple[str, ...]] = ("text", "visual")
    config_class: ClassVar[type[EditorConfig]] = DualEditConfig
