"""TP: neurons in the last layer that fire at an edit's wrong tokens and write the right ones.

Huang et al., "Transformer-Patcher: one mistake worth one neuron" (ICLR 2023). Training fills a
memory: states of training inputs at which neurons have to be silent.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import on_input
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.base import Edit, encode_requests
from editors.io import save_tensors
from editors.methods.transformer_patcher_training import (
    TransformerPatcherConfig,
    at_answers,
    run_request,
    train_neurons,
)
from editors.training.config import EditorConfig
from editors.training.dataset import requests_of
from editors.training.editor import TrainableEditor
from editors.training.losses import ROLES
from editors.training.run import TrainingJob
from editors.weights.components import last_layers, mlp_of
from editors.weights.neurons import NeuronEdit, joined

MEMORIES = "memories.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class TransformerPatcher(TrainableEditor):
    """Trains a few neurons per edit, beside those of the last MLP.

    Attributes:
        layer: The layer whose MLP is patched.
        memories: States at which they have to be silent.
    """

    name: ClassVar[str] = "tp"
    is_trained: ClassVar[bool] = False
    config_class: ClassVar[type[EditorConfig]] = TransformerPatcherConfig
    recorded: ClassVar[tuple[str, ...]] = ("layer",)

    layer: int
    memories: Float[Tensor, "memory d_model"]

    @classmethod
    def _train(cls, job: TrainingJob) -> "TransformerPatcher":
        vlm, config, samples = job.vlm, job.config, job.usable
        layers = last_layers(vlm, job.layers, 1)
        if len(layers) != 1:
            raise AttribError(f"tp patches one layer, not {layers}; give one, or none for the last")
        if not samples:
            raise AttribError("tp: there is no sample to remember")
        began = time.monotonic()
        memories = collect_memories(vlm, layers[0], samples, config)
        trained = {
            "settings": config.settings(),
            "memories": len(memories),
            "seconds": time.monotonic() - began,
            "curve": [],
        }
        return cls(vlm, config, layers[0], memories, trained=trained)

    def edit(self, vlm: VLM, request: EditRequest) -> NeuronEdit:
        """The edit that installs a request; without neurons if the answer is already right."""
        network = mlp_of(vlm, self.layer)
        here = run_request(vlm, network, self.layer, self.encode(vlm, request))
        return NeuronEdit(self.layer, train_neurons(vlm, network, here, self.memories, self.config))

    def merge(self, edits: Sequence[Edit]) -> NeuronEdit:
        """Several edits as one: all their neurons."""
        return joined([edit for edit in edits if isinstance(edit, NeuronEdit)])

    def _save_tensors(self, path: Path) -> None:
        save_tensors(path / MEMORIES, {"memories": self.memories})

    @classmethod
    def _load(cls, vlm: VLM, record: Mapping[str, Any], path: Path) -> "TransformerPatcher":
        memories = load_file(path / MEMORIES)["memories"].to(vlm.device)
        config = TransformerPatcherConfig.from_record(record)
        return cls(vlm, config, record["layer"], memories, trained=record["trained"])


@torch.no_grad()
def collect_memories(
    vlm: VLM, layer: int, samples: Sequence[EditSample], config: TransformerPatcherConfig
) -> Float[Tensor, "memory d_model"]:
    """Inputs of the MLP at the answers of training inputs, of every kind, in random order.

    Only as many samples are run as are needed.
    """
    order = np.random.default_rng(config.seed).permutation(len(samples))
    module, found, num = mlp_of(vlm, layer).up.module, [], 0
    for index in progress(order.tolist(), "memories"):
        if num >= config.num_memories:
            break
        inputs = [one for role in ROLES for one in requests_of(samples[index], role)]
        x: list[Tensor] = []
        batch = encode_requests(vlm, inputs, padding_side="right")
        assert batch.labels is not None
        with on_input(module, lambda h, _args, _kwargs, x=x: x.append(h)):
            vlm.logits(batch)
        found.append(at_answers(x[0], batch.labels).float().clone())
        num += len(found[-1])
    return torch.cat(found)[: config.num_memories]
