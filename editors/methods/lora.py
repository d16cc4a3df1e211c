"""Trainable changes of a decoder: low-rank additions to its attention, or all its layers.

Low rank: Hu et al. 2021 ("LoRA"), y + alpha / rank * up(down(x)) for the output y of a linear
layer, with `up` zero before training, by the library peft.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from attrib.errors import SetupError
from attrib.model.vlm import VLM
from editors.base import WeightEdit
from editors.weights.partial_forward import call_with_weights

# Names of the projections to queries, keys and values in all families, alone or fused.
QKV_NAMES = re.compile(
    r"[qkv]_proj|qkv_proj|qkv|Wqkv|W_pack|c_attn|query|key|value|query_key_value"
)

NAME = "edit"  # peft's name for the additions
Result = TypeVar("Result")


class LowRank(nn.Module):
    """Low-rank additions to the query, key and value projections of some layers, in float32.

    While they are applied, peft's layers replace the model's own, which are never changed.
    """

    def __init__(self, vlm: VLM, layers: Sequence[int], rank: int, alpha: float, seed: int):
        super().__init__()
        self.layers = list(layers)
        self._wrapped = _peft_layers(qkv_projections(vlm, layers), rank, alpha, seed)
        # The trained parts, without the layers that are wrapped.
        self.parts = nn.ModuleDict(
            {key: nn.ModuleDict({"down": one.lora_A[NAME], "up": one.lora_B[NAME]})
             for key, one in self._wrapped.items()}
        )  # fmt: skip

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply the additions inside the context; the model's own weights do not change."""
        places = [(vlm.layers[int(layer)], path) for layer, path in map(_place, self._wrapped)]
        own = [layer.get_submodule(path) for layer, path in places]
        try:
            for (layer, path), wrapped in zip(places, self._wrapped.values(), strict=True):
                layer.set_submodule(path, wrapped)
            yield
        finally:
            for (layer, path), linear in zip(places, own, strict=True):
                layer.set_submodule(path, linear)

    def run(self, vlm: VLM, fn: Callable[[], Result]) -> Result:
        """Call `fn` with the additions applied; gradients reach them."""
        with self.applied(vlm):
            return fn()


class AllLayers(nn.Module):
    """Copies of all parameters of some decoder layers, in float32."""

    def __init__(self, vlm: VLM, layers: Sequence[int]):
        super().__init__()
        whose = {id(p) for layer in layers for p in vlm.layers[layer].parameters()}
        own = {name: p for name, p in vlm.model.named_parameters() if id(p) in whose}
        self.names = {name.replace(".", "/"): name for name in own}
        self.copies = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(p.detach().float().clone())
             for name, p in own.items()}
        )  # fmt: skip

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Give the model the copies' values inside the context; its own tensors come back."""
        values = {self.names[key]: value.detach() for key, value in self.copies.items()}
        with WeightEdit(values).applied(vlm):
            yield

    def run(self, vlm: VLM, fn: Callable[[], Result]) -> Result:
        """Call `fn` while the model has the copies' values; gradients reach them."""
        dtype = vlm.model.dtype
        values = {self.names[key]: value.to(dtype) for key, value in self.copies.items()}
        return call_with_weights(vlm, values, fn)


def _peft_layers(
    linears: Mapping[str, nn.Linear], rank: int, alpha: float, seed: int
) -> dict[str, Any]:
    """Layers of peft around some linear layers, which stay in their places."""
    from peft import LoraConfig, inject_adapter_in_model

    flags = {one: [p.requires_grad for p in one.parameters()] for one in linears.values()}
    # Injected into a holder, not into the model, so that nothing of the model is renamed.
    holder = nn.ModuleDict(dict(linears))
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(linears)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(**settings), holder, NAME)
    for linear, wanted in flags.items():
        for parameter, flag in zip(linear.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    made: dict[str, Any] = dict(holder.items())
    for one in made.values():
        one.lora_A.float()
        one.lora_B.float()
    return made


def _place(key: str) -> tuple[str, str]:
    """Layer and path of a linear layer, from its key in `qkv_projections`."""
    layer, _, path = key.partition("/")
    return layer, path.replace("/", ".")


def qkv_projections(vlm: VLM, layers: Sequence[int]) -> dict[str, nn.Linear]:
    """The query, key and value projections of some layers, by a key for each.

    Raises:
        SetupError: A layer has none with a known name.
    """
    found = {}
    for layer in layers:
        linears = {
            name: module
            for name, module in vlm.layers[layer].named_modules()
            if isinstance(module, nn.Linear) and QKV_NAMES.fullmatch(name.rpartition(".")[2])
        }
        if not linears:
            raise SetupError(
                f"{vlm.name}: layer {layer} has no linear layers to queries, keys and values; "
                "parameters='all' trains whole layers"
            )
        found |= {f"{layer}/{name.replace('.', '/')}": one for name, one in linears.items()}
    return found
