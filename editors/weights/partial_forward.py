"""Passes over one request from a layer on, and passes with other values for some parameters."""

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

Done = TypeVar("Done")
PartialForward = Callable[[], Float[Tensor, "asked d_model"]]


def labels_of(batch: Batch) -> Int[Tensor, " asked"]:
    """The answer tokens of a batch, row by row."""
    assert batch.labels is not None
    return batch.labels[batch.labels != IGNORE_INDEX]


@torch.no_grad()
def partial_forward(vlm: VLM, batch: Batch, first: int) -> PartialForward:
    """What runs the layers from `first` on once more: their last output at the answer's positions.

    The layers in front of `first` run once, now. Hooks and parameters are those of the time of the
    call, and gradients flow through them.
    """
    with read(vlm, [] if first == 0 else [first - 1]) as hidden, capture(vlm) as captured:
        vlm.logits(batch)
    start = captured.embed if first == 0 else hidden[first - 1]
    assert batch.labels is not None
    asked = batch.labels != IGNORE_INDEX

    def run() -> Float[Tensor, "asked d_model"]:
        return forward_from(vlm, captured, first - 1, start)[asked]

    return run


def call_with_weights(vlm: VLM, weights: Mapping[str, Tensor], do: Callable[[], Done]) -> Done:
    """What `do` returns while parameters of the model have other values, which gradients reach."""
    named = {f"model.{name}": value for name, value in weights.items()}
    return functional_call(_Called(vlm.model), named, (do,))


def target_loss(
    logits: Float[Tensor, "asked d_vocab"], labels: Int[Tensor, " asked"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer tokens, in nats."""
    return -log_probabilities(logits).gather(1, labels[:, None]).mean()


class _Called(nn.Module):
    """Runs what it is given; holds the model so that `functional_call` finds its parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, do: Callable[[], Done]) -> Done:
        return do()
