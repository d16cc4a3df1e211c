"""Hypernetwork editors: a network turns a request's gradients into low-rank updates of matrices.

What MEND and KE share.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.data.samples import EditRequest, EditSample
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from editors.base import Edit, SequentialEdit, WeightEdit
from editors.io import save_tensors
from editors.methods.objective import EditObjective
from editors.training.config import TrainingConfig
from editors.training.dataset import CachedDataset, PrefixRows
from editors.training.editor import TrainableEditor
from editors.training.prefix import collate
from editors.training.run import TrainingJob
from editors.weights.components import Matrix, Which, last_layers, matrices_of
from editors.weights.low_rank import LowRankEdit, merged
from editors.weights.passes import (
    LowRankUpdate,
    apply_updates,
    partial_forward,
    sum_of_edits,
    token_gradients,
)

NETWORK = "net.safetensors"
NUM_LAYERS = 3  # the last ones, as published for both

Conditions = Mapping[str, Tensor]  # token ids that the network reads, by sample
Shapes = Mapping[str, tuple[int, int]]  # outputs and inputs of each matrix


class HypernetworkConfig(TrainingConfig):
    """Options of hypernetwork editors.

    Attributes:
        matrices: Which matrices of the MLPs are updated: "up_down" (as published), "down", or "all"
            (LiveEdit's LLaVA: the gate's as well).
    """

    matrices: Which = "up_down"


Made = TypeVar("Made", bound="HypernetworkEditor")


@dataclass(frozen=True, eq=False, repr=False)
class HypernetworkEditor(TrainableEditor):
    """A network that turns the gradients of a request into updates of matrices.

    Attributes:
        layers: The layers whose MLPs are updated.
        net: The network.
    """

    recorded: ClassVar[tuple[str, ...]] = ("layers",)

    layers: Sequence[int]
    net: nn.Module

    @classmethod
    def _train(cls: "type[Made]", job: TrainingJob) -> "Made":
        vlm, config = job.vlm, job.config
        layers = last_layers(vlm, job.layers, NUM_LAYERS)
        net = cls._build(vlm, layers, config, config.seed)
        first = min(layers) - 1
        data, validation = job.inputs([first])
        matrices = matrices_of(vlm, layers, config.matrices)
        conditions = cls._conditions(vlm, config, [*job.split[0], *job.split[1]])
        kind = cls.objective_class(config)
        objective = kind(vlm, data, validation, config, net, matrices, first, conditions)
        trained = job.fit(objective, layers=layers, settings=config.settings())
        return cls(vlm, config, layers, net, trained=trained)

    @classmethod
    def _build(
        cls: "type[Made]", vlm: VLM, layers: Sequence[int], config: Any, seed: int
    ) -> nn.Module:
        """The untrained network, on the device of the matrices."""
        matrices = matrices_of(vlm, layers, config.matrices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls._network(vlm, {m.name: m.shape for m in matrices}, config)
        return net.to(execution_device(matrices[0].module)).eval()

    @classmethod
    @abstractmethod
    def _network(cls, vlm: VLM, shapes: Shapes, config: Any) -> nn.Module:
        """The untrained network, for matrices of these shapes."""

    @classmethod
    def _conditions(cls, vlm: VLM, config: Any, samples: Sequence[EditSample]) -> Conditions:
        """What the network reads of each sample besides gradients: by default nothing."""
        del vlm, config
        return {sample.id: torch.zeros(0, dtype=torch.long) for sample in samples}

    @classmethod
    def objective_class(cls, config: Any) -> "type[HypernetworkObjective]":
        """The loss."""
        del config
        return HypernetworkObjective

    def edit(self, vlm: VLM, request: EditRequest) -> LowRankEdit:
        """The edit that installs a request: one pass over it, forward and backward."""
        sample = EditSample("request", request)
        return self._edit(vlm, request, self._conditions(vlm, self.config, [sample])["request"])

    def _edit(self, vlm: VLM, request: EditRequest, condition: Tensor) -> LowRankEdit:
        batch = self.encode(vlm, request)
        assert batch.labels is not None
        matrices = matrices_of(vlm, self.layers, self.config.matrices)
        run = partial_forward(vlm, batch, min(self.layers))
        gradients = token_gradients(vlm, matrices, run, batch.labels)
        with torch.no_grad():
            return LowRankEdit.of(matrices, self.net(gradients, [condition]))

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """Several edits as one: the sum of their updates."""
        factored = merged([edit for edit in edits if isinstance(edit, LowRankEdit)])
        dense = [edit for edit in edits if isinstance(edit, WeightEdit)]  # of earlier versions
        return SequentialEdit([sum_of_edits(self.vlm, dense), factored]) if dense else factored

    def in_sequence(self, edits: Sequence[LowRankEdit]) -> LowRankEdit:
        """Edits that were made one after the other as one: each adds its update to the others."""
        return merged(edits)

    def _save_tensors(self, path: Path) -> None:
        save_tensors(path / NETWORK, self.net.state_dict())

    @classmethod
    def _load(cls: "type[Made]", vlm: VLM, record: Mapping[str, Any], path: Path) -> "Made":
        config = cls.config_class.from_record(record)
        net = cls._build(vlm, record["layers"], config, seed=0)
        net.load_state_dict(load_file(path / NETWORK))
        return cls(vlm, config, record["layers"], net, trained=record["trained"])


@dataclass(eq=False)
class HypernetworkObjective(EditObjective):
    """The loss of a hypernetwork on edits (MEND, section 3): passes under its updates.

    Attributes:
        module: The network.
        matrices: The matrices that are updated.
        first: The layer whose outputs are cached: all layers after it run again.
        conditions: What the network reads of each sample besides gradients.
    """

    module: nn.Module
    matrices: Sequence[Matrix]
    first: int
    conditions: Conditions

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss, of a network in training mode.

        Running statistics are updated; recurrent layers of cuDNN have gradients in no other mode.
        """
        self.module.train()
        terms = self.terms(items, rng)
        self.module.eval()
        return terms

    def terms(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted terms of the loss, whatever the mode."""
        return super().losses(items, rng)

    def edits(self, data: CachedDataset, items: Sequence[int]) -> dict[str, LowRankUpdate]:
        """The updates that the network makes for some edits, by matrix."""
        batch = collate([data.edits[item] for item in items], self.first)
        run = partial(batch.run, self.vlm, {})
        gradients = token_gradients(self.vlm, self.matrices, run, batch.labels)
        return self.module(gradients, [self.conditions[data.ids[item]] for item in items])

    def logits(
        self, rows: PrefixRows, edits: Mapping[str, LowRankUpdate]
    ) -> Float[Tensor, "token d_vocab"]:
        """Logits at the answer tokens of passes under the updates, row by row."""
        own = {name: update.rows(rows.edit_of) for name, update in edits.items()}
        with apply_updates(self.matrices, own):
            return self.vlm.unembed(collate(rows.inputs, self.first).run(self.vlm, {}))
