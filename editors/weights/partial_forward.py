"""Partial forward passes, from a layer on, and passes with other values of some parameters."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from attrib.forward.hooks import read
from attrib.forward.replay import capture, forward_from
from attrib.metrics import log_probabilities
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM

Result = TypeVar("Result")
PartialForward = Callable[[], Float[Tensor, "token d_model"]]


def labels_of(batch: Batch) -> Int[Tensor, " token"]:
    """The answer tokens of a batch, row by row."""
    assert batch.labels is not None
    return batch.labels[batch.labels != IGNORE_INDEX]


@torch.no_grad()
def partial_forward(vlm: VLM, batch: Batch, first: int) -> PartialForward:
    """A function that runs the layers from `first` on: the last output at the labelled positions.

    The layers before `first` run once, now. Each call uses the hooks and parameters of its time,
    and gradients flow through them.
    """
    with read(vlm, [] if first == 0 else [first - 1]) as hidden, capture(vlm) as captured:
        vlm.logits(batch)
    start = captured.embed if first == 0 else hidden[first - 1]
    assert batch.labels is not None
    has_label = batch.labels != IGNORE_INDEX

    def run() -> Float[Tensor, "token d_model"]:
        return forward_from(vlm, captured, first - 1, start)[has_label]

    return run


def call_with_weights(vlm: VLM, weights: Mapping[str, Tensor], fn: Callable[[], Result]) -> Result:
    """Call `fn` while parameters of the model have other values; gradients reach these."""
    named = {f"model.{name}": value for name, value in weights.items()}
    return functional_call(_Caller(vlm.model), named, (fn,))


def target_loss(
    logits: Float[Tensor, "token d_vocab"], labels: Int[Tensor, " token"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer tokens, in nats."""
    return -log_probabilities(logits).gather(1, labels[:, None]).mean()


class _Caller(nn.Module):
    """Calls a function; holds the model so that `functional_call` finds its parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, fn: Callable[[], Result]) -> Result:
        return fn()
