"""Writes of every layer to the residual stream, at chosen positions (VisEdit, Eq. 1)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

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
from attrib.model.devices import wide
from attrib.model.precision import widened
from attrib.model.vlm import VLM

Step = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ResidualWrites:
    """Writes of one forward pass to the residual stream, at one or several positions per example.

    `embed + (attn + mlp + between_layers).sum(1) == final`, up to the model's rounding. All are in
    float32 or wider, whatever the model runs in.

    Attributes:
        steps: Per layer (input, attention's write, MLP's write, output).
    """

    steps: dict[int, Step]

    @property
    def embed(self) -> Float[Tensor, "batch d_model"]:
        """The stream entering layer 0."""
        return self._column(0)[:, 0]

    @property
    def attn(self) -> Float[Tensor, "batch layer d_model"]:
        """Each layer's write by attention."""
        return self._column(1)

    @property
    def mlp(self) -> Float[Tensor, "batch layer d_model"]:
        """Each layer's write by its MLP."""
        return self._column(2)

    @property
    def between_layers(self) -> Float[Tensor, "batch layer d_model"]:
        """Writes between a layer and the next (visual features of Qwen3-VL); usually zeros."""
        between_layers = torch.zeros_like(self.attn)
        between_layers[:, :-1] = self._column(0)[:, 1:] - self._column(3)[:, :-1]
        return between_layers

    @property
    def final(self) -> Float[Tensor, "batch d_model"]:
        """The last layer's output."""
        return self._column(3)[:, -1]

    def _column(self, i: int) -> Float[Tensor, "batch layer d_model"]:
        if not self.steps:
            raise AttribError("no residual writes yet: run one forward pass inside the context")
        device = self.steps[0][0].device
        parts = [self.steps[layer][i].to(device) for layer in sorted(self.steps)]
        return torch.stack([part.to(widened(part.dtype)) for part in parts], 1)


def match_sublayers(
    before: Tensor, after: Tensor, outputs: dict[str, Tensor], layer: int
) -> tuple[Tensor, Tensor]:
    """Find the two submodule outputs whose sum is the layer's change of the stream, in order.

    Args:
        before: The layer's input, "batch d_model".
        after: Its output.
        outputs: The output of each submodule, in the order of their calls.
        layer: Index for the error message.

    Raises:
        AttribError: No two outputs add up to the change, or the output is not finite.
    """
    if not after.isfinite().all():
        raise AttribError(
            f"layer {layer}: its output is not finite: a weight is damaged, or the values overflow "
            "this dtype; try float32"
        )
    # A layer rounds the stream twice, each time by at most half an eps of its value. A wrong pair
    # does not stay within 4 eps of the summands in every element.
    eps = 4 * torch.finfo(after.dtype).eps
    delta = wide(after) - wide(before)
    pairs = []
    for a, b in combinations(outputs.values(), 2):
        bound = eps * wide(before.abs() + a.abs() + b.abs() + after.abs())
        miss = (delta - wide(a) - wide(b)).abs()
        if (miss <= bound).all():
            pairs.append((float(miss.sum()), a, b))
    if not pairs:
        raise AttribError(
            f"layer {layer}: no two of its submodules {sorted(outputs)} add up to its change "
            "of the residual stream; this architecture's wiring is not supported"
        )
    _, attn, mlp = min(pairs, key=lambda pair: pair[0])
    return attn, mlp


@contextmanager
def residual_writes(vlm: VLM, positions: Positions) -> Iterator[ResidualWrites]:
    """Keep the writes of every layer's attention and MLP at one position per example.

    The writing submodules are found numerically: the two whose outputs add up to the layer's change
    of the stream. This covers pre-norm, sandwich norms and parallel attention without a list of
    module names.

    Args:
        vlm: The model.
        positions: One per example, as indices or as a mask, or several as "batch several" indices.

    Yields:
        ResidualWrites, filled by the forward pass inside the context.

    Raises:
        AttribError: No two submodules of a layer account for its output.
    """
    rows = position_index(positions)
    writes = ResidualWrites({})
    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(_keep_writes(layer, i, rows, writes.steps))
        yield writes


@contextmanager
def _keep_writes(
    layer: nn.Module, index: int, rows: Tensor, steps: dict[int, Step]
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
            steps[index] = (before, *match_sublayers(before, after, outputs, index), after)

    with ExitStack() as stack:
        stack.enter_context(on_input(layer, enter))
        for name, child in layer.named_children():
            stack.enter_context(on_output(child, keeper(name)))
        stack.enter_context(on_output(layer, leave))
        yield
