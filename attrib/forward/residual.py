"""Writes of every layer to the residual stream, at chosen positions (VisEdit, Eq. 1)."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import PositionGather, Positions, on_modules
from attrib.forward.wiring import MOST, LayerPass, Wiring, find_wiring, holding
from attrib.model.precision import widened
from attrib.model.vlm import VLM

Step = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
# What the submodules of a layer are called that mix positions, in the arguments of their forward.
MIXING = {"attention_mask", "past_key_values", "cache_params"}


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
        column = torch.stack([self.steps[layer][i].to(device) for layer in sorted(self.steps)], 1)
        return column.to(widened(column.dtype))

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
        ResidualWrites, filled when the last layer of the forward pass inside the context is done.

    Raises:
        AttribError: No submodules of a layer account for its output.
    """
    gather = PositionGather(positions)
    writes, passes = ResidualWrites({}), dict[int, LayerPass]()

    watched = [_Watched(layer, i, gather, passes) for i, layer in enumerate(vlm.layers)]
    inputs = [(layer, one.enter) for layer, one in zip(vlm.layers, watched, strict=True)]
    outputs = [hook for one in watched for hook in one.outputs_of()]
    outputs.append((vlm.layers[-1], lambda _: _fill(vlm, passes, writes)))
    with on_modules(inputs, outputs):
        yield writes
        _fill(vlm, passes, writes)  # of a pass that was stopped before the last layer


@dataclass(eq=False)
class _Watched:
    """A layer whose passes are kept, except for cached steps of generation."""

    layer: nn.Module
    index: int
    gather: PositionGather
    passes: dict[int, LayerPass]
    into: Tensor | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def outputs_of(self) -> Iterator[tuple[nn.Module, Callable[[Tensor], None]]]:
        """What to call at the outputs of the layer's submodules and at its own."""
        for name, child in self.layer.named_children():
            yield child, partial(self.keep, name)
        yield self.layer, self.leave

    def enter(self, h: Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        self.into = None if self.gather.is_cached_step(h.shape[1]) else h
        self.seen = {}

    def keep(self, name: str, output: Tensor) -> None:
        # OPT's fc2 returns "batch*pos d_model".
        h = self.into
        if h is not None and isinstance(output, Tensor) and output.numel() == h.numel():
            self.seen[name] = self.gather(output.reshape(h.shape))

    def leave(self, out: Tensor) -> None:
        if self.into is not None:
            after = self.gather(out)
            before = self.gather(self.into).to(after.device)
            self.passes[self.index] = LayerPass(before, self.seen, after)
            self.into = None


def _fill(vlm: VLM, passes: dict[int, LayerPass], writes: ResidualWrites) -> None:
    """Move the passes of layers into `writes`, by the wirings of earlier passes if these hold."""
    known = {layer: vlm.verified[layer] for layer in passes if layer in vlm.verified}
    for layer in passes.keys() - holding(known, passes):
        seen = passes[layer]
        vlm.verified[layer] = find_wiring(seen.before, seen.after, seen.outputs, layer)
    zeros = torch.empty(0)
    for layer, seen in passes.items():
        wiring = vlm.verified[layer]
        columns = _columns(vlm.layers[layer], wiring, seen.outputs)
        if zeros.shape != seen.after.shape or zeros.device != seen.after.device:
            zeros = torch.zeros_like(seen.after)
        attn, mlp, other = (columns.get(i, zeros) for i in range(MOST))
        writes.steps[layer] = (seen.before, attn, mlp, other, seen.after)
        writes.scales[layer] = wiring.scale
    passes.clear()


def _columns(layer: nn.Module, wiring: Wiring, outputs: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The writes by place: 0 for attention, 1 for the MLP, 2 for a third one."""
    first = 0
    if len(wiring.names) == 1:  # a layer of either
        takes = inspect.signature(layer.get_submodule(wiring.names[0]).forward).parameters
        first = 0 if MIXING & set(takes) else 1
    return dict(enumerate(wiring.writes(outputs), first))
