"""The weights that editors change, found by structure and not by their names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attrib.errors import SetupError
from attrib.forward.hooks import on_input, on_output
from attrib.model.adapters import linears, own_parameters, works
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from attrib.model.wrapped import refuse_packed
from editors.adapters.sites import check_layers

Which = Literal["down", "up_down", "all"]
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
Part = Literal["connector", "projection", "vision_tower"]
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
DESCRIPTIONS = {
    "connector": "projector or Q-Former",
    "projection": "projector",
    "vision_tower": "vision tower",
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """One linear layer of a model.

    Attributes:
        name: Name of its weight in `vlm.model.named_parameters()`.
        module: The layer.
        place: What the model calls in its place: a layer of peft around it, or the layer itself.
    """

    name: str
    module: nn.Linear
    place: nn.Module

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.module.out_features, self.module.in_features


@dataclass(frozen=True, eq=False)
class MLP:
    """The MLP of a decoder layer: `down(act(up x))`, or gated, `down(act(gate x) up x)`.

    Attributes:
        up: Matrix from the residual stream.
        down: Matrix back to it.
        gate: Matrix in front of the activation function, if the MLP is gated.
        activation: The activation function.
    """

    up: Matrix
    down: Matrix
    gate: Matrix | None
    activation: nn.Module

    def matrices(self, which: Which) -> list[Matrix]:
        """Some of its matrices."""
        some = {"down": [self.down], "up_down": [self.up, self.down]}
        return some.get(which) or [*([self.gate] if self.gate else []), self.up, self.down]


def mlp_of(vlm: VLM, layer: int) -> MLP:
    """The MLP of a layer.

    Raises:
        SetupError: The layer has none of a known form (a mixture of experts, fused matrices).
    """
    block, names = vlm.layers[layer], {id(m): name for name, m in vlm.model.named_modules()}
    attention = tuple(_attention(block))
    matrices = {
        path: _matrix(f"{vlm.name}: layer {layer}: {path}", names, place, module)
        for path, place, module in linears(block)
        if not path.startswith(attention)
    }
    downs = {path: m for path, m in matrices.items() if m.shape[0] == vlm.d_model != m.shape[1]}
    path, down = next(iter(downs.items()), ("", None))
    ups = [m for m in matrices.values() if down and m.shape == down.shape[::-1]]
    holder = block.get_submodule(path.rpartition(".")[0])
    acts = [m for m in _outside_attention(holder) if type(m).__module__ in ACTIVATIONS]
    if down is None or len(downs) != 1 or len(ups) not in (1, 2) or not acts:
        raise SetupError(
            f"{vlm.name}: layer {layer} has no feed-forward network of one or two matrices in and "
            f"one out, but {[m.shape for m in matrices.values()]}; editors of hidden states "
            "(visedit, dualedit) need none"
        )
    if len(ups) == 1:
        return MLP(ups[0], down, None, acts[0])
    gate, up = _gate_first(holder, acts[0], ups, vlm.d_model, vlm.dtype)
    return MLP(up, down, gate, acts[0])


def matrices_of(vlm: VLM, layers: Sequence[int], which: Which) -> list[Matrix]:
    """Matrices of the MLPs of some layers, in layer order.

    Raises:
        SetupError: A layer has none of a known form, or its weights are quantised.
    """
    found = [m for layer in sorted(layers) for m in mlp_of(vlm, layer).matrices(which)]
    refuse_packed(((m.name, m.module) for m in found), vlm.name)
    return found


def last_layers(vlm: VLM, layers: Any, num: int) -> list[int]:
    """The layers to edit: as given (by modality, a report, or a list), or the last `num`.

    Raises:
        AttribError: The model has no such layer.
    """
    if layers is None:
        return list(range(max(0, vlm.num_layers - num), vlm.num_layers))
    given = getattr(layers, "layers", layers)
    some = [i for part in given.values() for i in part] if isinstance(given, Mapping) else given
    chosen = sorted(set(some))
    check_layers(vlm, {"text": chosen})
    return chosen


def _matrix(what: str, names: Mapping[int, str], place: Any, module: nn.Linear) -> Matrix:
    additive = hasattr(place, "lora_A") and not place.lora_variant  # LoRA, not DoRA
    if place is not module and works(place) and not additive:
        raise SetupError(
            f"{what} has an adapter ({type(place).__name__}) that changes what its weights mean, "
            "so that they cannot be edited; merge it first: peft_model.merge_and_unload()"
        )
    return Matrix(f"{names[id(module)]}.weight", module, place)


def _attention(block: nn.Module) -> Iterator[str]:
    for path, module in block.named_modules():
        if path and "attention" in type(module).__name__.lower():
            yield f"{path}."


def _outside_attention(block: nn.Module) -> Iterator[nn.Module]:
    inside = tuple(_attention(block))
    for path, module in block.named_modules():
        if path and not f"{path}.".startswith(inside):
            yield module


@torch.no_grad()
def _gate_first(
    holder: nn.Module, activation: nn.Module, ups: list[Matrix], d_model: int, dtype: torch.dtype
) -> tuple[Matrix, Matrix]:
    """The matrix whose output the activation function sees, and the other one."""
    seen: dict[str, Tensor] = {}
    module = ups[0].module
    place = {"dtype": dtype, "device": execution_device(module)}
    with (
        on_input(activation, lambda h, _args, _kwargs: seen.update(act=h)),
        on_output(ups[0].place, lambda h: seen.update(first=h)),
    ):
        holder(torch.ones(1, 1, d_model, **place))
    return (ups[0], ups[1]) if seen["act"] is seen["first"] else (ups[1], ups[0])


def visual_parameters(vlm: VLM, part: Part) -> dict[str, nn.Parameter]:
    """The parameters of a module before the decoder, by name.

    Args:
        vlm: The model.
        part: "connector" is the Q-Former if there is one, else the projector; "projection" the
            projector in any case; "vision_tower" the module that both read.

    Raises:
        SetupError: The model has no such part.
    """
    towers, between = [], []
    for name, module in _in_front(vlm, vlm.model, ""):
        (towers if _has(module, CONVOLUTIONS) else between).append((name, module))
    stacks = [pair for pair in between if _has(pair[1], (nn.ModuleList,))]
    plain = [pair for pair in between if not _has(pair[1], (nn.ModuleList,))]
    mergers = [pair for tower in towers for pair in _mergers(vlm, *tower)]
    found = {
        "connector": stacks or plain or mergers,
        "projection": plain or mergers,
        "vision_tower": towers,
    }
    for name, module in found[part]:
        refuse_packed(((f"{name}.{path}", one) for path, _, one in linears(module)), vlm.name)
    named = {
        f"{name}.{key}": value
        for name, module in found[part]
        for key, value in own_parameters(module)
    }
    if not named:
        raise SetupError(
            f"{vlm.name} has no {DESCRIPTIONS[part]} to train; ft-l trains the last layer's MLP "
            "instead, and works with any model"
        )
    return named


def _in_front(vlm: VLM, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules beside the language model, however deep both are nested."""
    head = vlm.components.output_embedding
    for name, child in module.named_children():
        here = f"{path}{name}"
        holds_decoder = any(part is vlm.components.decoder for part in child.modules())
        if holds_decoder and _has(child, CONVOLUTIONS):
            yield from _in_front(vlm, child, f"{here}.")
        elif not holds_decoder and child is not head and [*child.parameters()]:
            yield here, child


def _mergers(vlm: VLM, path: str, tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Projectors inside the vision tower (the Qwen family)."""
    for name, child in tower.named_children():
        plain = not _has(child, (*CONVOLUTIONS, nn.ModuleList))
        if plain and any(
            isinstance(m, nn.Linear) and m.out_features == vlm.d_model for m in child.modules()
        ):
            yield f"{path}.{name}", child


def _has(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(part, kinds) for part in module.modules())
