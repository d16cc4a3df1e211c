"""What a gate is trained, calibrated and judged on: the inputs of edits, and their states."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.base import encode_requests

REQUEST = "request"
COVERED = (REQUEST, "text_generality", "visual_generality")
EASY = ("text_locality", "visual_locality")
HARD = "hard_locality"  # where a dataset does not say in which way it is hard


@runtime_checkable
class StateReader(Protocol):
    """A gate, or the part of one that picks states."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Whose outputs it reads."""
        ...

    def states(self, hidden: dict[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """What it picks of each example."""
        ...


class RelatedInput(NamedTuple):
    """An input of a sample.

    Attributes:
        row: Of the sample.
        relation: "request", the name of a sample's list, or the type of a hard locality input.
        request: The input.
    """

    row: int
    relation: str
    request: EditRequest


def related(samples: Sequence[EditSample]) -> list[RelatedInput]:
    """The request of each sample and every input that its edit is judged by, in order."""
    return [
        RelatedInput(row, *one) for row, sample in enumerate(samples) for one in _inputs(sample)
    ]


@torch.no_grad()
def collect_states(
    vlm: VLM,
    requests: Sequence[EditRequest],
    reads: StateReader,
    *,
    targets: bool = False,
    batch_size: int = 32,
    what: str = "inputs of the gate",
) -> list[dict[str, Tensor]]:
    """Run inputs once, unedited, and keep what is picked of each, on the CPU.

    Args:
        vlm: The model.
        requests: The inputs.
        reads: What picks the states.
        targets: Whether inputs come with their gold answers, as an edit does and as under teacher
            forcing; that changes only what a gate picks that leaks them.
        batch_size: Inputs of one pass.
        what: To tell how far it is.

    Raises:
        RowError: A picture cannot be used.
    """
    kept: dict[int, dict[str, Tensor]] = {}
    for some in progress(_batches(requests, batch_size), what):
        found = _states(vlm, [requests[i] for i in some], reads, targets)
        kept.update(zip(some, map(_on_cpu, found), strict=True))
    return [kept[i] for i in range(len(requests))]


def _inputs(sample: EditSample) -> Iterator[tuple[str, EditRequest]]:
    yield REQUEST, sample.request
    for relation in (*COVERED[1:], *EASY):
        for request in getattr(sample, relation):
            yield relation, request
    types = sample.meta.get("hard_types") or [HARD] * len(sample.hard_locality)
    yield from zip(types, sample.hard_locality, strict=True)


def _batches(requests: Sequence[EditRequest], size: int) -> list[list[int]]:
    """Inputs of like length together: less padding, and those without an image by themselves."""

    def like(i: int) -> tuple[bool, int, int]:
        return requests[i].source is None, len(requests[i].prompt), i

    order = sorted(range(len(requests)), key=like)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _states(
    vlm: VLM, requests: Sequence[EditRequest], reads: StateReader, targets: bool
) -> list[dict[str, Tensor]]:
    batch = encode_requests(vlm, requests, targets=targets)
    with read(vlm, reads.layers) as hidden:
        vlm.logits(batch)
    return reads.states(hidden, batch)


def _on_cpu(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in states.items()}
