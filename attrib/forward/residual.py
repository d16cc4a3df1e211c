"""The residual stream of a forward pass as a sum of writes, at one position per example."""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.errors import AttribError

Positions = Int[Tensor, "batch *several"] | Bool[Tensor, "batch pos"]
Step = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ResidualWrites:
    """What one forward pass wrote to the residual stream, at one position per example.

    `embed + (attn + mlp + between_layers).sum(1) == final`, up to rounding in its dtype.

    Attributes:
        steps: Per layer (stream entering it, attention's write, MLP's write, stream leaving it).
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
        return torch.stack([self.steps[layer][i].to(device) for layer in sorted(self.steps)], 1)


def match_sublayers(
    before: Tensor, after: Tensor, outputs: dict[str, Tensor], layer: int
) -> tuple[Tensor, Tensor]:
    """The two submodule outputs that account for what a layer did to the stream, in order.

    Args:
        before: The stream entering the layer, "batch d_model".
        after: The stream leaving it.
        outputs: What each submodule returned, in the order of their calls.
        layer: For the message.

    Raises:
        AttribError: No two of them do, or the numbers have broken down.
    """
    if not after.isfinite().all():
        raise AttribError(
            f"layer {layer}: its output is not finite: a weight is damaged, or the numbers are too "
            "large for this dtype; float32 holds more"
        )
    # The stream rounds twice on its way through a layer, each time by at most half an eps of what
    # it then is; 4 eps of the summands is a bound that a wrong pair does not meet in every element.
    eps = 4 * torch.finfo(after.dtype).eps
    delta = after.double() - before.double()
    pairs = []
    for a, b in combinations(outputs.values(), 2):
        bound = eps * (before.abs() + a.abs() + b.abs() + after.abs()).double()
        miss = (delta - a.double() - b.double()).abs()
        if (miss <= bound).all():
            pairs.append((float(miss.sum()), a, b))
    if not pairs:
        raise AttribError(
            f"layer {layer}: no two of its submodules {sorted(outputs)} add up to what it wrote to "
            "the residual stream; this architecture's wiring is not supported"
        )
    _, attn, mlp = min(pairs, key=lambda pair: pair[0])
    return attn, mlp


def rows_of(positions: Positions) -> Int[Tensor, "batch *several"]:
    """Positions as indices: one per example from a mask; indices as they are.

    Raises:
        AttribError: A mask does not have one True per row.
    """
    if positions.dtype != torch.bool:
        return positions
    if not (positions.sum(1) == 1).all():
        raise AttribError("positions: expected one True per row, as in batch['last']")
    return positions.int().argmax(1)


def is_later_step(num_pos: int, rows: Tensor) -> bool:
    """Whether a pass is a cached step of generation.

    Raises:
        AttribError: It is not, and yet some position is beyond its end.
    """
    beyond = int(rows.max()) >= num_pos
    if beyond and num_pos > 1:
        raise AttribError(f"position {int(rows.max())}: the pass has positions 0 to {num_pos - 1}")
    return beyond


def pick(
    h: Float[Tensor, "batch pos *width"], rows: Int[Tensor, "batch *several"]
) -> Float[Tensor, "batch *several_width"]:
    """The states at one position per example, or at several."""
    example = torch.arange(len(rows), device=h.device).reshape(-1, *[1] * (rows.ndim - 1))
    # Indexing copies: a view would keep the whole tensor alive.
    return h[example, rows.to(h.device)]
