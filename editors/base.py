"""Interfaces of edits and editors, edits of weights, and the encoding of edit requests."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.devices import loaded_weights
from attrib.model.vlm import VLM

__all__ = ["Edit", "Editor", "WeightEdit", "encode_requests"]


@runtime_checkable
class Edit(Protocol):
    """One or several edited facts, active while the context of `applied` is open."""

    @property
    def num_bytes(self) -> int:
        """Bytes stored for the edit."""
        ...

    def applied(self, vlm: VLM) -> AbstractContextManager[None]:
        """Apply the edit inside the context; restore the model bit for bit on exit or error."""
        ...


@runtime_checkable
class Editor(Protocol):
    """Makes edits of one model, with or without training."""

    name: ClassVar[str]
    needs_layers: ClassVar[bool]  # whether `train` needs the layers to edit
    is_trained: ClassVar[bool]  # whether it has trained parameters, so that seeds differ

    @classmethod
    def train(
        cls, vlm: VLM, samples: Sequence[EditSample], *, out: str | Path, **options: Any
    ) -> "Editor":
        """Train on `samples`; resume from the checkpoints in the folder `out`."""
        ...

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "Editor":
        """Load the editor from the folder `path`; refuse one of another model."""
        ...

    def save(self, path: str | Path) -> None:
        """Write the editor into the folder `path` as safetensors and JSON."""
        ...

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """Return the edit that installs a request."""
        ...

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """Combine several of its edits into one."""
        ...


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """Edited values of some parameters.

    Attributes:
        weights: The edited values, by parameter name in `vlm.model`.
    """

    weights: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of the edited values."""
        return sum(t.nbytes for t in self.weights.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Replace the parameters' data inside the context; the original tensors come back."""
        known = {name for name, _ in vlm.model.named_parameters(remove_duplicate=False)}
        if unknown := sorted(set(self.weights) - known):
            raise AttribError(
                f"{vlm.name} has no parameter {unknown[0]}: the edit is of another model"
            )
        with loaded_weights(vlm.model, self.weights) as parameters:
            before = {name: parameters[name].data for name in self.weights}
            try:
                for name, value in self.weights.items():
                    parameters[name].data = value.to(before[name])
                yield
            finally:
                for name, value in before.items():
                    parameters[name].data = value

    def __repr__(self) -> str:
        return f"WeightEdit({len(self.weights)} parameters, {self.num_bytes:,} bytes)"


def encode_requests(
    vlm: VLM,
    requests: Sequence[EditRequest],
    *,
    targets: bool = True,
    padding_side: Literal["left", "right"] = "left",
) -> Batch:
    """Encode the images, prompts and, with `targets`, the targets of requests as one batch."""
    return vlm.encode(
        [request.image for request in requests],
        [request.prompt for request in requests],
        [request.target for request in requests] if targets else None,
        padding_side=padding_side,
    )
