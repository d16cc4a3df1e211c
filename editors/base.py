"""What an editor makes: edits that hold while a context is open, and leave the model as it was."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import on_output, write
from attrib.model.vlm import VLM
from editors.adapters.router import Serving
from editors.adapters.sites import Gate, MemoryEntry, Site

__all__ = ["Edit", "Editor", "HiddenEdit", "WeightEdit"]


@runtime_checkable
class Edit(Protocol):
    """One fact, or several, installed in a model for as long as a context is open."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept for it."""
        ...

    def applied(self, vlm: VLM) -> AbstractContextManager[None]:
        """Install it; on leaving, also on an error, the model is what it was, bit for bit."""
        ...


@runtime_checkable
class Editor(Protocol):
    """Makes edits of a model; trained for it, or not in need of training."""

    name: ClassVar[str]
    needs_layers: ClassVar[bool]  # whether it must be told at which layers to edit
    is_trained: ClassVar[bool]  # whether it learns before its first edit, so that seeds differ

    @classmethod
    def train(
        cls, vlm: VLM, samples: Sequence[EditSample], *, out: str | Path, **options: Any
    ) -> "Editor":
        """Trained on `samples`, with checkpoints in the folder `out`, from where it is resumed."""
        ...

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "Editor":
        """What was saved in the folder `path`, if for this model."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the editor into the folder `path`, as safetensors and JSON."""
        ...

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """The edit that installs a request."""
        ...

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """Several of its edits as one."""
        ...


@dataclass(frozen=True, eq=False)
class HiddenEdit:
    """Edits served by adapters: each input by the nearest edit that the gate lets it have.

    Attributes:
        sites: The adapters, in the order of their layers.
        memories: The edits.
        gate: Decides; None serves every input with the one edit there is.
    """

    sites: Sequence[Site]
    memories: Sequence[MemoryEntry]
    gate: Gate | None = None

    def __post_init__(self):
        if self.gate is None and len(self.memories) != 1:
            raise AttribError(
                f"{len(self.memories)} edits together need a gate that tells which one an input is "
                "served; edit with a gate, or apply one edit at a time"
            )

    @property
    def num_bytes(self) -> int:
        """Bytes kept of the edits; the adapters serve any number of them."""
        return sum(memory.num_bytes for memory in self.memories)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The edits hold for passes by `vlm.logits` and `vlm.generate`."""
        serving = Serving(vlm, self.memories, self.gate)
        with ExitStack() as stack:
            for layer in () if self.gate is None else self.gate.layers:
                stack.enter_context(on_output(vlm.layers[layer], serving.listener(layer)))
            for site in self.sites:
                into = serving.writer(site)
                stack.enter_context(write(vlm, site.layer, into, at=serving.positions(site)))
            yield


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """Other values for some of the model's parameters.

    Attributes:
        weights: By the parameter's name in `vlm.model`, its edited values.
    """

    weights: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of the edited values."""
        return sum(t.numel() * t.element_size() for t in self.weights.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The parameters have the edited values; the very tensors they had come back."""
        parameters = dict(vlm.model.named_parameters())
        if unknown := sorted(set(self.weights) - set(parameters)):
            raise AttribError(
                f"{vlm.name} has no parameter {unknown[0]}: the edit is of another model"
            )
        before = {name: parameters[name].data for name in self.weights}
        try:
            for name, value in self.weights.items():
                parameters[name].data = value.to(before[name])
            yield
        finally:
            for name, value in before.items():
                parameters[name].data = value
