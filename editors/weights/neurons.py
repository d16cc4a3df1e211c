"""Neurons that are added to a feed-forward network, and the edits that they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import on_input, on_output
from attrib.model.vlm import VLM
from editors.weights.mlp import FeedForward, feed_forward

TOP = 16.0  # where activation functions are far above 1


@dataclass(frozen=True, eq=False)
class Neurons:
    """Hidden units with what they listen to and what they write.

    Attributes:
        keys: What they listen to. Of a gated network there are two branches, of which the first
            passes the activation function and is multiplied with the second.
        biases: Added to what they hear.
        values: What each writes to the residual stream, times its activation.
    """

    keys: Float[Tensor, "branch neuron d_model"]
    biases: Float[Tensor, "branch neuron"]
    values: Float[Tensor, "neuron d_model"]

    def heard(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest neuron"]:
        """What reaches the activation function, of an input of the network."""
        return x.to(self.keys.dtype) @ self.keys[0].T + self.biases[0]

    def activations(
        self, x: Float[Tensor, "*rest d_model"], activation: nn.Module
    ) -> Float[Tensor, "*rest neuron"]:
        """How strongly each neuron fires."""
        fired = activation(self.heard(x))
        if len(self.keys) == 1:
            return fired
        return fired * (x.to(self.keys.dtype) @ self.keys[1].T + self.biases[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name."""
        return {"keys": self.keys, "biases": self.biases, "values": self.values}


@dataclass(frozen=True, eq=False)
class NeuronEdit:
    """Neurons beside those of one layer's feed-forward network.

    Attributes:
        layer: Which, counted from 0.
        neurons: The neurons; there may be none, where a model needs no edit.
    """

    layer: int
    neurons: Neurons

    @property
    def num_bytes(self) -> int:
        """Bytes of the neurons."""
        return sum(t.numel() * t.element_size() for t in self.neurons.tensors.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The neurons fire in passes inside; no weight of the model is touched."""
        network = feed_forward(vlm, self.layer)
        branches = 1 if network.gate is None else 2
        if self.neurons.keys.shape[::2] != (branches, vlm.d_model):
            raise AttribError(f"the neurons are of another model than {vlm.name}")
        with patched(network, self.neurons):
            yield


@contextmanager
def patched(network: FeedForward, neurons: Neurons) -> Iterator[None]:
    """Passes inside have the neurons beside the network's own; gradients reach them."""
    seen: dict[str, Tensor] = {}

    def add(h: Tensor) -> Tensor:
        fired = neurons.activations(seen["x"], network.activation)
        return h + (fired @ neurons.values).to(h.dtype)

    with (
        on_input(network.up.module, lambda x, _args, _kwargs: seen.update(x=x)),
        on_output(network.down.module, add),
    ):
        yield


def joined(edits: Sequence[NeuronEdit]) -> NeuronEdit:
    """All neurons of several edits side by side.

    Raises:
        AttribError: They are of different layers.
    """
    layers = {edit.layer for edit in edits}
    if len(layers) != 1:
        raise AttribError(f"edits of layers {sorted(layers)} cannot be one; edit one layer")
    parts = [edit.neurons for edit in edits]
    return NeuronEdit(
        layers.pop(),
        Neurons(
            torch.cat([part.keys for part in parts], 1),
            torch.cat([part.biases for part in parts], 1),
            torch.cat([part.values for part in parts]),
        ),
    )


def neuron_edit(layer: int, tensors: Mapping[str, Tensor]) -> NeuronEdit:
    """The edit whose neurons are these `Neurons.tensors`."""
    return NeuronEdit(layer, Neurons(**tensors))


@torch.no_grad()
def fires_at(activation: nn.Module, device: torch.device) -> float:
    """The positive number that an activation function maps to 1, by bisection."""
    low, high = 0.0, TOP
    for _ in range(60):
        middle = (low + high) / 2
        if activation(torch.tensor([middle], device=device)).item() < 1:
            low = middle
        else:
            high = middle
    return high
