"""Editors that turn a request's gradient into changes of matrices: what MEND and KE share."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors.base import Edit, WeightEdit, encode_requests
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.methods.hypernetwork_objective import Conditions, HypernetworkObjective
from editors.prefix.streamed_dataset import cached_or_streamed
from editors.training.held_out import held_out
from editors.training.losses import ROLES, Weights
from editors.training.run import EditorTraining
from editors.training.settings import refuse_gate, settings_of
from editors.weights.mlp import last_layers, matrices_of
from editors.weights.partial_forward import tail_of
from editors.weights.rank1_update import edit_of_changes, sum_of_edits, token_gradients

logger = logging.getLogger("attrib")
NET = "net.safetensors"
NUM_LAYERS = 3  # of the last, as published for both

Made = TypeVar("Made", bound="HypernetworkEditor")


@dataclass(frozen=True, eq=False)
class HypernetworkEditor(ABC):
    """A network that turns the gradients of a request into changes of matrices.

    Attributes:
        vlm: The model it was trained for.
        layers: Whose feed-forward networks are changed.
        settings: What the network is.
        net: The network.
        trained: How it was trained: data, steps, loss; JSON.
    """

    name: ClassVar[str]
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True
    settings_kind: ClassVar[type[Any]]
    presets: ClassVar[Mapping[str, Sequence[Any]]]

    vlm: VLM
    layers: Sequence[int]
    settings: Any
    net: nn.Module
    trained: Mapping[str, Any] | None = None

    @classmethod
    def train(
        cls: "type[Made]",
        vlm: VLM,
        samples: Sequence[EditSample],
        *,
        out: str | Path,
        layers: Any = None,
        validation: Sequence[EditSample] | None = None,
        gate: str | None = None,
        preset: str = "auto",
        **changes: Any,
    ) -> "Made":
        """Train the network; in the folder `out`, from where an interrupted run goes on.

        Args:
            vlm: The model; it stays frozen.
            samples: Edits to train on.
            out: Folder of checkpoints and of the trained editor.
            layers: Whose matrices are changed, instead of the last three layers'.
            validation: Edits by which the best weights are picked; by default the last 5 % of
                `samples` (at most 100), which are then not trained on.
            gate: None, or "none".
            preset: "published", "embedded", or "auto": by the size of the model.
            changes: Settings other than the preset's: of `Training`, `Weights` or the network.

        Raises:
            AttribError: Unknown settings or layers, no samples, another run in `out`, a loss that
                is not finite.
        """
        refuse_gate(cls.name, gate)
        training, weights, settings = settings_of(vlm, cls.presets, preset, changes)
        chosen = last_layers(vlm, layers, NUM_LAYERS)
        kept, held = held_out(samples, validation)
        if not kept:
            raise AttribError(f"{cls.name}: {len(samples)} samples are too few to train on")
        net = cls._built(vlm, chosen, settings, training.seed)
        objective = cls._objective(vlm, chosen, net, settings, weights, kept, held)
        about = {"layers": chosen, "settings": settings}
        fitting = EditorTraining(cls.name, vlm, training, weights, kept, held, Path(out), about)
        trained = fitting.run(objective)
        return fitting.saved(cls(vlm, chosen, settings, net, trained))

    @classmethod
    def _built(cls, vlm: VLM, layers: Sequence[int], settings: Any, seed: int) -> nn.Module:
        """The network, untrained, where the matrices are."""
        matrices = matrices_of(vlm, layers, settings.matrices)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls._network(vlm, {m.name: m.shape for m in matrices}, settings)
        return net.to(matrices[0].module.weight.device).eval()

    @classmethod
    @abstractmethod
    def _network(cls, vlm: VLM, shapes: Mapping[str, tuple[int, int]], settings: Any) -> nn.Module:
        """The network, untrained."""

    @classmethod
    def _conditions(cls, vlm: VLM, settings: Any, samples: Sequence[EditSample]) -> Conditions:
        """What the network reads of each sample's words: by default nothing."""
        del vlm, settings
        return {sample.id: torch.zeros(0, dtype=torch.long) for sample in samples}

    @classmethod
    def _objective(
        cls,
        vlm: VLM,
        layers: Sequence[int],
        net: nn.Module,
        settings: Any,
        weights: Weights,
        samples: Sequence[EditSample],
        held: Sequence[EditSample],
    ) -> HypernetworkObjective:
        """What is minimised."""
        first = min(layers) - 1
        roles = [role for role in ROLES if role == "request" or weights.of(role)]
        data, rest = cached_or_streamed(
            vlm, samples, held, first=[first], signals=[first], roles=roles
        )
        conditions = cls._conditions(vlm, settings, [*samples, *held])
        matrices = matrices_of(vlm, layers, settings.matrices)
        return HypernetworkObjective(vlm, matrices, net, data, rest, weights, first, conditions)

    def edit(self, vlm: VLM, request: EditRequest) -> WeightEdit:
        """The edit that installs a request: one pass over it, forward and backward."""
        sample = EditSample("request", request)
        return self._edit(vlm, request, self._conditions(vlm, self.settings, [sample])["request"])

    def _edit(self, vlm: VLM, request: EditRequest, condition: Tensor) -> WeightEdit:
        batch = encode_requests(vlm, [request])
        assert batch.labels is not None
        matrices = matrices_of(vlm, self.layers, self.settings.matrices)
        run = tail_of(vlm, batch, min(self.layers))
        gradients = token_gradients(vlm, matrices, run, batch.labels)
        with torch.no_grad():
            return edit_of_changes(matrices, self.net(gradients, [condition]))

    def merge(self, edits: Sequence[Edit]) -> WeightEdit:
        """Several edits as one: the sum of their changes."""
        return sum_of_edits(self.vlm, edits)

    def save(self, path: str | Path) -> None:
        """Write the network as safetensors, and all about it as JSON."""
        path = Path(path)
        about = {"layers": list(self.layers), "settings": asdict(self.settings)}
        write_record(path, self.name, self.vlm, about | {"trained": self.trained})
        save_tensors(path / NET, self.net.state_dict())

    @classmethod
    def load(cls: "type[Made]", path: str | Path, vlm: VLM) -> "Made":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was trained for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            settings = cls.settings_kind(**record["settings"])
            net = cls._built(vlm, record["layers"], settings, seed=0)
            net.load_state_dict(load_file(path / NET))
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error
        return cls(vlm, record["layers"], settings, net, record["trained"])
