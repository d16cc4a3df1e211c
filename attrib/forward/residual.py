"""Writes of every layer to the residual stream, at chosen positions (VisEdit, Eq. 1)."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import (
    Positions,
    gather_positions,
    is_cached_step,
    on_input,
    on_output,
    position_index,
)
from attrib.forward.wiring import MOST, Wiring, find_wiring
from attrib.model.precision import widened
from attrib.model.vlm import VLM

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
# What the submodules of a layer are called that mix positions, in the arguments of their forward.
MIXING = {"attention_mask", "past_key_values", "cache_params"}
# Found once: identification takes many times longer than the pass of a layer.
_WIRINGS: WeakKeyDictionary[nn.Module, Wiring] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ResidualWrites:
    """Writes of one forward pass to the residual stream, at one or several positions per example.

    `embed + (attn + mlp + between_layers).sum(1) == final`, up to the model's rounding. All are in
    float32 or wider, whatever the model runs in.

    Where a layer scales the stream, its own and all earlier writes are given as they are after all
    later layers: what they are in `final`.

    Attributes:
        steps: Per layer (input, attention's write, MLP's write, a third one, output).
        scales: Per layer what it multiplies the stream with.
    """

    steps: dict[int, Step]
    scales: dict[int, float] = field(default_factory=dict)

    @property
    def embed(self) -> Float[Tensor, "batch d_model"]:
        """The stream entering layer 0."""
        embed = self._column(0)[:, 0]
        return embed if (scale := self._later(-1)) == 1 else embed * scale

    @property
    def attn(self) -> Float[Tensor, "batch layer d_model"]:
        """Each layer's write by attention, or by what mixes positions in its place."""
        return self._rescaled(self._column(1))

    @property
    def mlp(self) -> Float[Tensor, "batch layer d_model"]:
        """Each layer's write by its MLP."""
        return self._rescaled(self._column(2))

    @property
    def between_layers(self) -> Float[Tensor, "batch layer d_model"]:
        """Writes by neither: usually zeros.

        Between a layer and the next (visual features of Qwen3-VL), or after the MLP (Gemma 4's
        per-layer embeddings).
        """
        between_layers = self._column(3)
        between_layers[:, :-1] += self._column(0)[:, 1:] - self._column(4)[:, :-1]
        return self._rescaled(between_layers)

    @property
    def final(self) -> Float[Tensor, "batch d_model"]:
        """The last layer's output."""
        return self._column(4)[:, -1]

    def _column(self, i: int) -> Float[Tensor, "batch layer d_model"]:
        if not self.steps:
            raise AttribError("no residual writes yet: run one forward pass inside the context")
        device = self.steps[0][0].device
        parts = [self.steps[layer][i].to(device) for layer in sorted(self.steps)]
        return torch.stack([part.to(widened(part.dtype)) for part in parts], 1)

    def _later(self, layer: int) -> float:
        """What the layers after `layer` multiply the stream with."""
        later = (scale for i, scale in self.scales.items() if i > layer)
        return math.prod(later, start=1.0)

    def _rescaled(self, writes: Tensor) -> Tensor:
        later = [self._later(layer) for layer in sorted(self.steps)]
        if all(scale == 1 for scale in later):
            return writes
        shape = (-1, *[1] * (writes.ndim - 2))
        return writes * torch.tensor(later, dtype=writes.dtype, device=writes.device).view(shape)


@contextmanager
def residual_writes(vlm: VLM, positions: Positions) -> Iterator[ResidualWrites]:
    """Keep the writes of every layer's attention and MLP at one position per example.

    The writing submodules are found numerically (`attrib.forward.wiring`): those whose outputs add
    up to the layer's change of the stream. This covers pre-norm, sandwich norms, parallel attention
    and factors without a list of module names.

    Args:
        vlm: The model.
        positions: One per example, as indices or as a mask, or several as "batch several" indices.

    Yields:
        ResidualWrites, filled by the forward pass inside the context.

    Raises:
        AttribError: No submodules of a layer account for its output.
    """
    rows = position_index(positions)
    writes = ResidualWrites({})
    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(_keep_writes(layer, i, rows, writes))
        yield writes


@contextmanager
def _keep_writes(
    layer: nn.Module, index: int, rows: Tensor, writes: ResidualWrites
) -> Iterator[None]:
    into: list[Tensor] = []
    outputs: dict[str, Tensor] = {}

    def enter(h: Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        into[:] = [] if is_cached_step(h.shape[1], rows) else [h]
        outputs.clear()

    def keeper(name: str) -> Callable[[Tensor], None]:
        def keep(output: Tensor) -> None:
            # OPT's fc2 returns "batch*pos d_model".
            if into and isinstance(output, Tensor) and output.numel() == into[0].numel():
                outputs[name] = gather_positions(output.reshape(into[0].shape), rows)

        return keep

    def leave(out: Tensor) -> None:
        if into:
            after = gather_positions(out, rows)
            before = gather_positions(into[0], rows).to(after.device)
            wiring = _wiring(layer, before, after, outputs, index)
            columns = _columns(layer, wiring, outputs)
            zeros = torch.zeros_like(after)
            writes.steps[index] = (before, *(columns.get(i, zeros) for i in range(MOST)), after)
            writes.scales[index] = wiring.scale

    with ExitStack() as stack:
        stack.enter_context(on_input(layer, enter))
        for name, child in layer.named_children():
            stack.enter_context(on_output(child, keeper(name)))
        stack.enter_context(on_output(layer, leave))
        yield


def _wiring(
    layer: nn.Module, before: Tensor, after: Tensor, outputs: dict[str, Tensor], index: int
) -> Wiring:
    """The wiring found in an earlier pass if it holds in this one, else that of this one."""
    known = _WIRINGS.get(layer)
    if known is None or known.miss(before, after, outputs) is None:
        known = _WIRINGS[layer] = find_wiring(before, after, outputs, index)
    return known


def _columns(layer: nn.Module, wiring: Wiring, outputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """The writes by place: 0 for attention, 1 for the MLP, 2 for a third one."""
    first = 0
    if len(wiring.names) == 1:  # a layer of either
        takes = inspect.signature(layer.get_submodule(wiring.names[0]).forward).parameters
        first = 0 if MIXING & set(takes) else 1
    return dict(enumerate(wiring.writes(outputs), first))
