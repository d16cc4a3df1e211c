"""TP: neurons in the last layer that fire at the wrong tokens of an edit, and write the right ones.

Huang et al., "Transformer-Patcher: one mistake worth one neuron" (ICLR 2023). What is prepared is a
memory: states of training inputs at which neurons have to stay silent.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import on_input
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.base import Edit, encode_requests
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.methods.patcher_fitting import PatchSettings, at_answers, fitted, request_of
from editors.prefix.cached_dataset import requests_of
from editors.training.losses import ROLES
from editors.training.settings import refuse_gate, settings_of
from editors.weights.mlp import feed_forward, last_layers
from editors.weights.neurons import NeuronEdit, joined

__all__ = ["NeuronEdit", "PatchSettings", "TransformerPatcher"]
MEMORIES = "memories.safetensors"


@dataclass(frozen=True, eq=False)
class TransformerPatcher:
    """Trains a few neurons per edit, beside those of the last feed-forward network.

    Attributes:
        vlm: The model.
        layer: Which layer's network is patched.
        settings: How neurons are made.
        memories: States at which they have to stay silent.
        trained: How the memory was made; JSON.
    """

    name: ClassVar[str] = "tp"
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Sequence[PatchSettings]]] = {
        "published": [PatchSettings()],
        "embedded": [PatchSettings(value_scale=1.0, steps=500, num_memories=2000)],
        "liveedit": [
            PatchSettings(
                variant="liveedit",
                max_neurons=1,
                steps=25,
                weight_decay=0.0,
                activation_weight=1e-4,
                memory_weight=1e-4,
            )
        ],
    }

    vlm: VLM
    layer: int
    settings: PatchSettings
    memories: Float[Tensor, "memory d_model"]
    trained: Mapping[str, Any] | None = None

    @classmethod
    def train(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample],
        *,
        out: str | Path,
        layers: Any = None,
        validation: Sequence[EditSample] | None = None,
        gate: str | None = None,
        preset: str = "auto",
        **changes: Any,
    ) -> "TransformerPatcher":
        """Fill the memory from training inputs, and write it into the folder `out`.

        Args:
            vlm: The model; it stays as it is.
            samples: Edits whose inputs are remembered.
            out: The folder.
            layers: The one layer to patch, instead of the last.
            validation: Not looked at.
            gate: None, or "none".
            preset: "published", "embedded", "liveedit", or "auto": by the variant that is asked
                for, and by the size of the model.
            changes: Settings other than the preset's: of `PatchSettings`.

        Raises:
            SetupError: The layer has no feed-forward network of a known form.
            AttribError: There is no such setting or layer, several layers, or no sample.
        """
        del validation
        refuse_gate(cls.name, gate)
        if preset == "auto" and changes.get("variant") == "liveedit":
            preset = "liveedit"
        (settings,) = settings_of(vlm, cls.presets, preset, changes)
        chosen = last_layers(vlm, layers, 1)
        if len(chosen) != 1:
            raise AttribError(f"tp patches one layer, not {chosen}; give one, or none for the last")
        if not samples:
            raise AttribError("tp: there is no sample to remember")
        began = time.monotonic()
        memories = remembered(vlm, chosen[0], samples, settings)
        trained = {
            "settings": asdict(settings),
            "memories": len(memories),
            "seconds": time.monotonic() - began,
            "curve": [],
        }
        editor = cls(vlm, chosen[0], settings, memories, trained)
        editor.save(out)
        return editor

    def edit(self, vlm: VLM, request: EditRequest) -> NeuronEdit:
        """The edit that installs a request; without neurons where the answer is right already."""
        network = feed_forward(vlm, self.layer)
        here = request_of(vlm, network, self.layer, encode_requests(vlm, [request]))
        return NeuronEdit(self.layer, fitted(vlm, network, here, self.memories, self.settings))

    def merge(self, edits: Sequence[Edit]) -> NeuronEdit:
        """Several edits as one: their neurons side by side."""
        return joined([edit for edit in edits if isinstance(edit, NeuronEdit)])

    def save(self, path: str | Path) -> None:
        """Write the memory as safetensors, and the settings as JSON."""
        path = Path(path)
        about = {"layer": self.layer, "settings": asdict(self.settings), "trained": self.trained}
        write_record(path, self.name, self.vlm, about)
        save_tensors(path / MEMORIES, {"memories": self.memories})

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "TransformerPatcher":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it is of another model or another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            memories = load_file(path / MEMORIES)["memories"].to(vlm.device)
            settings = PatchSettings(**record["settings"])
            return cls(vlm, record["layer"], settings, memories, record["trained"])
        except (OSError, KeyError, TypeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error


@torch.no_grad()
def remembered(
    vlm: VLM, layer: int, samples: Sequence[EditSample], settings: PatchSettings
) -> Float[Tensor, "memory d_model"]:
    """What the feed-forward network sees at the answers of training inputs, in random order.

    Every kind of input that edits are judged by is there. Of samples so many are run as are needed.
    """
    order = np.random.default_rng(settings.seed).permutation(len(samples))
    module, found, num = feed_forward(vlm, layer).up.module, [], 0
    for index in progress(order.tolist(), "states to remember"):
        if num >= settings.num_memories:
            break
        inputs = [one for role in ROLES for one in requests_of(samples[index], role)]
        seen: list[Tensor] = []
        batch = encode_requests(vlm, inputs, padding_side="right")
        assert batch.labels is not None
        with on_input(module, lambda h, _args, _kwargs, seen=seen: seen.append(h)):
            vlm.logits(batch)
        found.append(at_answers(seen[0], batch.labels).float().clone())
        num += len(found[-1])
    return torch.cat(found)[: settings.num_memories]
