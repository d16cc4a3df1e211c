"""MEND's editor networks: one per shape of matrix, the identity before training."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editors.weights.rank1_update import LowRankUpdate, TokenGradients

Pooling = Literal["sum", "mean"]
TINY = 1e-7  # added to standard deviations, as in the published code


class MENDNet(nn.Module):
    """Turns the gradients of requests into changes (MEND, section 3.2; its published code).

    For each token the input x and the output's gradient d of a matrix, normalised, pass an editor
    that the matrices of one shape share; the change is rate times the sum of d~ x~^T.

    Args:
        shapes: By matrix its outputs and inputs.
        rank: Of the editor's layers.
        num_hidden: Layers before the last.
        normalise: Whether inputs are normalised by their running mean and standard deviation.
        pooling: Over tokens: their "sum" (as published) or their "mean" (LiveEdit's variant).
        rate: The initial rate, added: its sign is learned.
        rate_lr_multiplier: How much faster the rates are learned than everything else.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        rank: int,
        num_hidden: int,
        normalise: bool,
        pooling: Pooling,
        rate: float,
        rate_lr_multiplier: float,
    ):
        super().__init__()
        self.shapes, self.pooling, self.rate_lr_multiplier = (
            dict(shapes),
            pooling,
            rate_lr_multiplier,
        )
        by_shape: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            by_shape.setdefault("x".join(map(str, shape)), []).append(name)
        self.mode_of = {n: (key, i) for key, some in by_shape.items() for i, n in enumerate(some)}
        self.editors = nn.ModuleDict(
            {
                key: TokenEditor(sum(shapes[some[0]]), rank, num_hidden, len(some), normalise)
                for key, some in by_shape.items()
            }
        )
        # One optimizer with one learning rate trains all: what is to move faster has larger units.
        self.rates = nn.Parameter(torch.full((len(shapes),), rate / rate_lr_multiplier))

    def forward(
        self, gradients: Mapping[str, TokenGradients], conditions: Sequence[Tensor] = ()
    ) -> dict[str, LowRankUpdate]:
        """By matrix the change for each request."""
        del conditions  # MEND reads gradients alone
        rates = self.rates * self.rate_lr_multiplier
        return {
            name: self._change(name, gradients[name], rate)
            for name, rate in zip(self.shapes, rates, strict=True)
        }

    def _change(self, name: str, g: TokenGradients, rate: Tensor) -> LowRankUpdate:
        key, mode = self.mode_of[name]
        real = g.real
        z = self.editors[key](torch.cat([g.delta, g.x], -1)[real], mode)
        edited = z.new_zeros(*real.shape, z.shape[-1]).masked_scatter(real[..., None], z)
        left, right = edited.split([g.delta.shape[-1], g.x.shape[-1]], -1)
        if self.pooling == "mean":
            left = left / real.sum(1).clamp(min=1)[:, None, None]
        return LowRankUpdate(rate * left, right)


class TokenEditor(nn.Module):
    """Normalised tokens through low-rank layers that start as the identity."""

    count: Tensor
    mean: Float[Tensor, " width"]
    squares: Float[Tensor, " width"]

    def __init__(self, width: int, rank: int, num_hidden: int, num_modes: int, normalise: bool):
        super().__init__()
        self.normalise = normalise
        some = [LowRank(width, min(rank, width), num_modes) for _ in range(num_hidden + 1)]
        self.layers = nn.ModuleList(some)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def forward(self, z: Float[Tensor, "token width"], mode: int) -> Float[Tensor, "token width"]:
        """What becomes of tokens of the matrix number `mode`; while training, counts them in."""
        if self.normalise:
            if self.training:
                self._count_in(z)
            z = self._normalised(z)
        for layer in self.layers:
            z = layer(z, mode)
        return z

    def _normalised(self, z: Tensor) -> Tensor:
        if self.count < 2:
            return z
        std = (self.squares / (self.count - 1).float()).sqrt()
        return (z - self.mean) / (std + TINY)

    @torch.no_grad()
    def _count_in(self, z: Tensor) -> None:
        """Welford's algorithm for many at once (Chan, Golub & LeVeque 1979)."""
        if not len(z):
            return
        total = self.count + len(z)
        gap = z.mean(0) - self.mean
        weight = (len(z) / total).float()
        self.squares += (z - z.mean(0)).square().sum(0) + gap.square() * self.count * weight
        self.mean += gap * weight
        self.count.copy_(total)


class LowRank(nn.Module):
    """`z + max(0, scale (U V z + bias) + shift)`, with a scale and a shift per matrix."""

    def __init__(self, width: int, rank: int, num_modes: int):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(num_modes, width))
        self.shift = nn.Parameter(torch.zeros(num_modes, width))

    def forward(self, z: Float[Tensor, "token width"], mode: int) -> Float[Tensor, "token width"]:
        """The tokens of the matrix number `mode`."""
        inner = z @ self.v.T @ self.u.T + self.bias
        # `relu` has no gradient at 0, where all starts; `clamp` has.
        return z + (self.scale[mode] * inner + self.shift[mode]).clamp(min=0)
