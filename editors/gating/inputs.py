"""The inputs that gates are trained, calibrated and evaluated on, and their features."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
HARD = "hard_locality"  # for datasets that do not name the types of hard locality inputs
Features = Callable[[dict[int, Tensor], Batch], list[dict[str, Tensor]]]  # such as `Gate.states`


class RelatedInput(NamedTuple):
    """An input of a sample.

    Attributes:
        row: Index of the sample.
        relation: "request", the name of a sample's list, or the type of a hard locality input.
        request: The input.
    """

    row: int
    relation: str
    request: EditRequest


def related_inputs(samples: Sequence[EditSample]) -> list[RelatedInput]:
    """Return each sample's request and every input that its edit is evaluated on, in order."""
    return [RelatedInput(row, *one) for row, s in enumerate(samples) for one in _inputs(s)]


@torch.no_grad()
def collect_states(
    vlm: VLM,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    features: Features,
    *,
    targets: bool = False,
    batch_size: int = 32,
    what: str = "inputs of the gate",
) -> list[dict[str, Tensor]]:
    """Run inputs once in the unedited model; return the features of each, on the CPU.

    Args:
        vlm: The model.
        requests: The inputs.
        layers: Layers whose outputs are read.
        features: Computes each example's features from these outputs.
        targets: Whether inputs include their gold answers, as edits and teacher-forced inputs do;
            this changes the features of a leaking gate only.
        batch_size: Inputs per pass.
        what: Label of the progress bar.

    Raises:
        RowError: An image cannot be used.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for some in progress(_batches(requests, batch_size), what):
        batch = encode_requests(vlm, [requests[i] for i in some], targets=targets)
        with read(vlm, layers) as hidden:
            vlm.logits(batch)
        for i, states in zip(some, features(hidden, batch), strict=True):
            found[i] = {name: value.cpu() for name, value in states.items()}
    return [found[i] for i in range(len(requests))]


def _inputs(sample: EditSample) -> Iterator[tuple[str, EditRequest]]:
    yield REQUEST, sample.request
    for relation in (*COVERED[1:], *EASY):
        for request in getattr(sample, relation):
            yield relation, request
    types = sample.meta.get("hard_types") or [HARD] * len(sample.hard_locality)
    yield from zip(types, sample.hard_locality, strict=True)


def _batches(requests: Sequence[EditRequest], size: int) -> list[list[int]]:
    """Batch inputs of similar length, those without an image apart: less padding."""

    def length(i: int) -> tuple[bool, int, int]:
        return requests[i].source is None, len(requests[i].prompt), i

    order = sorted(range(len(requests)), key=length)
    return [order[start : start + size] for start in range(0, len(order), size)]
