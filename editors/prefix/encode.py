"""Requests as batches."""

from collections.abc import Sequence
from typing import Literal

from attrib.data.samples import EditRequest
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


def encoded(
    vlm: VLM,
    requests: Sequence[EditRequest],
    *,
    targets: bool = True,
    padding_side: Literal["left", "right"] = "left",
) -> Batch:
    """Images, prompts and, if asked for, targets of requests."""
    return vlm.encode(
        [request.image for request in requests],
        [request.prompt for request in requests],
        [request.target for request in requests] if targets else None,
        padding_side=padding_side,
    )
