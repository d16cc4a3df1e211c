"""Neurons added to an MLP, and the edits that consist of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import on_input, on_output
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from editors.weights.components import MLP, mlp_of

TOP = 16.0  # where activation functions are far above 1


@dataclass(frozen=True, eq=False)
class Neurons:
    """Hidden units of an MLP.

    Attributes:
        keys: Input weights. A gated MLP has two branches: the first passes the activation function
            and is multiplied with the second.
        biases: Input biases.
        values: Output weights, to the residual stream.
    """

    keys: Float[Tensor, "branch neuron d_model"]
    biases: Float[Tensor, "branch neuron"]
    values: Float[Tensor, "neuron d_model"]

    def pre_activations(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest neuron"]:
        """Input of the activation function, for inputs of the MLP."""
        return x.to(self.keys.dtype) @ self.keys[0].T + self.biases[0]

    def activations(
        self, x: Float[Tensor, "*rest d_model"], activation: nn.Module
    ) -> Float[Tensor, "*rest neuron"]:
        """Activation of each neuron."""
        active = activation(self.pre_activations(x))
        if len(self.keys) == 1:
            return active
        return active * (x.to(self.keys.dtype) @ self.keys[1].T + self.biases[1])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All weights, by name."""
        return {"keys": self.keys, "biases": self.biases, "values": self.values}


@dataclass(frozen=True, eq=False)
class NeuronEdit:
    """Neurons beside those of one layer's MLP.

    Attributes:
        layer: The layer, counted from 0.
        neurons: The neurons; none if the model needs no edit.
        causal: See `editors.base.is_causal`.
    """

    causal: ClassVar[bool] = True

    layer: int
    neurons: Neurons

    @property
    def num_bytes(self) -> int:
        """Bytes of the neurons."""
        return sum(t.nbytes for t in self.neurons.tensors.values())

    def __repr__(self) -> str:
        num = len(self.neurons.values)
        return f"NeuronEdit({num} neurons in layer {self.layer}, {self.num_bytes:,} bytes)"

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Add the neurons to passes inside; no weight of the model changes."""
        network = mlp_of(vlm, self.layer)
        branches = 1 if network.gate is None else 2
        if self.neurons.keys.shape[::2] != (branches, vlm.d_model):
            raise AttribError(f"the neurons are of another model than {vlm.name}")
        device = execution_device(network.up.module)
        here = Neurons(**{name: t.to(device) for name, t in self.neurons.tensors.items()})
        with patched(network, here):
            yield


@contextmanager
def patched(network: MLP, neurons: Neurons) -> Iterator[None]:
    """Add neurons to an MLP in passes inside; gradients reach them."""
    inputs: dict[str, Tensor] = {}

    def add(h: Tensor) -> Tensor:
        active = neurons.activations(inputs["x"], network.activation)
        return h + (active @ neurons.values).to(h.dtype)

    with (
        on_input(network.up.module, lambda x, _args, _kwargs: inputs.update(x=x)),
        on_output(network.down.module, add),
    ):
        yield


def joined(edits: Sequence[NeuronEdit]) -> NeuronEdit:
    """All neurons of several edits.

    Raises:
        AttribError: They are in different layers.
    """
    layers = {edit.layer for edit in edits}
    if len(layers) != 1:
        raise AttribError(f"edits of layers {sorted(layers)} cannot be merged; edit one layer")
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
    """The edit with these `Neurons.tensors`."""
    return NeuronEdit(layer, Neurons(**tensors))


@torch.no_grad()
def unit_input(activation: nn.Module, device: torch.device) -> float:
    """The positive number that an activation function maps to 1, by bisection."""
    low, high = 0.0, TOP
    for _ in range(60):
        middle = (low + high) / 2
        if activation(torch.tensor([middle], device=device)).item() < 1:
            low = middle
        else:
            high = middle
    return high
