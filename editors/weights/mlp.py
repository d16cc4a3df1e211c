"""The MLP weights that editors change, found by structure and not by their names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attrib.errors import SetupError
from attrib.forward.hooks import on_input, on_output
from attrib.model.vlm import VLM
from editors.adapters.sites import check_layers

Which = Literal["down", "up_down", "all"]
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


@dataclass(frozen=True, eq=False)
class Matrix:
    """One linear layer of a model.

    Attributes:
        name: Name of its weight in `vlm.model.named_parameters()`.
        module: The layer.
    """

    name: str
    module: nn.Linear

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
    block, names = vlm.layers[layer], _weight_names(vlm)
    linears = {
        path: Matrix(names[id(module.weight)], module)
        for path, module in _outside_attention(block)
        if isinstance(module, nn.Linear)
    }
    downs = {path: m for path, m in linears.items() if _leads_back(m, vlm.d_model)}
    path, down = next(iter(downs.items()), ("", None))
    ups = [m for m in linears.values() if down and m.shape == down.shape[::-1]]
    holder = block.get_submodule(path.rpartition(".")[0])
    acts = [m for _, m in _outside_attention(holder) if type(m).__module__ in ACTIVATIONS]
    if down is None or len(downs) != 1 or len(ups) not in (1, 2) or not acts:
        raise SetupError(
            f"{vlm.name}: layer {layer} has no feed-forward network of one or two matrices in and "
            f"one out, but {[m.shape for m in linears.values()]}; editors of hidden states "
            "(visedit, dualedit) need none"
        )
    if len(ups) == 1:
        return MLP(ups[0], down, None, acts[0])
    gate, up = _gate_first(holder, acts[0], ups, vlm.d_model)
    return MLP(up, down, gate, acts[0])


def matrices_of(vlm: VLM, layers: Sequence[int], which: Which) -> list[Matrix]:
    """Matrices of the MLPs of some layers, in layer order."""
    return [m for layer in sorted(layers) for m in mlp_of(vlm, layer).matrices(which)]


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


def _outside_attention(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    attention: list[str] = []
    for path, module in block.named_modules():
        if "attention" in type(module).__name__.lower():
            attention.append(f"{path}.")
        if path and not f"{path}.".startswith(tuple(attention)):
            yield path, module


def _leads_back(matrix: Matrix, d_model: int) -> bool:
    d_out, d_in = matrix.shape
    return d_out == d_model != d_in


@torch.no_grad()
def _gate_first(
    holder: nn.Module, activation: nn.Module, ups: list[Matrix], d_model: int
) -> tuple[Matrix, Matrix]:
    """The matrix whose output the activation function sees, and the other one."""
    seen: dict[str, Tensor] = {}
    weight = ups[0].module.weight
    with (
        on_input(activation, lambda h, _args, _kwargs: seen.update(act=h)),
        on_output(ups[0].module, lambda h: seen.update(first=h)),
    ):
        holder(torch.ones(1, 1, d_model, dtype=weight.dtype, device=weight.device))
    return (ups[0], ups[1]) if seen["act"] is seen["first"] else (ups[1], ups[0])


def _weight_names(vlm: VLM) -> dict[int, str]:
    return {id(value): name for name, value in vlm.model.named_parameters()}
