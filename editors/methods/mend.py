"""MEND: a small network turns the gradient of a request into an update of the last layers.

Mitchell et al., "Fast model editing at scale" (ICLR 2022), with the losses of its use on
vision-language models (Cheng et al. 2023): new answers for rephrased prompts and other images, old
answers for unrelated inputs with and without an image; the request itself is optional. Unlike
there, the KL is taken at answer tokens only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.model.vlm import VLM
from editors.adapters.moments import add_to_moments
from editors.methods import baseline_presets
from editors.methods.hypernetwork import HypernetworkConfig, HypernetworkEditor, Shapes
from editors.training.config import EditorConfig
from editors.training.presets import Preset
from editors.weights.passes import LowRankUpdate, TokenGradients

Pooling = Literal["sum", "mean"]
EPSILON = 1e-7  # added to standard deviations, as in the published code


class MENDConfig(HypernetworkConfig):
    """Options of MEND.

    Attributes:
        rank: Rank of the networks' layers; at most their width.
        num_hidden: Layers before the last.
        normalise: Whether inputs are normalised by their running mean and standard deviation.
        pooling: Over tokens: the "sum" of their updates (as published), or the "mean" (LiveEdit).
        rate: Factor of the update before training. Positive, up the gradient, as published: its
            sign is learned.
        rate_lr_multiplier: Learning rate of the rates over that of the rest (published: 1e-4 over
            1e-6).
    """

    presets: ClassVar[Mapping[str, Preset]] = baseline_presets.MEND
    large: ClassVar[str] = "mend-easyedit"

    rank: int = 1920
    num_hidden: int = 1
    normalise: bool = True
    pooling: Pooling = "sum"
    rate: float = 1e-4
    rate_lr_multiplier: float = 100.0


@dataclass(frozen=True, eq=False, repr=False)
class MEND(HypernetworkEditor):
    """Updates of the last three layers, made of the request's gradients token by token."""

    name: ClassVar[str] = "mend"
    config_class: ClassVar[type[EditorConfig]] = MENDConfig

    @classmethod
    def _network(cls, vlm: VLM, shapes: Shapes, config: MENDConfig) -> nn.Module:
        del vlm
        return MENDNetwork(shapes, config)


class MENDNetwork(nn.Module):
    """Turns the gradients of requests into updates (MEND, section 3.2, and its published code).

    For each token, a matrix's input x and its output's gradient d, normalised, pass an editor that
    the matrices of one shape share; the update is rate times the sum of d~ x~^T.

    Args:
        shapes: Outputs and inputs of each matrix.
        config: The options.
    """

    def __init__(self, shapes: Shapes, config: MENDConfig):
        super().__init__()
        self.shapes, self.config = dict(shapes), config
        by_shape: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            by_shape.setdefault("x".join(map(str, shape)), []).append(name)
        self.mode_of = {n: (key, i) for key, some in by_shape.items() for i, n in enumerate(some)}
        self.editors = nn.ModuleDict(
            {
                key: TokenEditor(sum(shapes[names[0]]), len(names), config)
                for key, names in by_shape.items()
            }
        )
        # One optimizer with one learning rate trains all: faster parameters have larger units.
        rate = config.rate / config.rate_lr_multiplier
        self.rates = nn.Parameter(torch.full((len(shapes),), rate))

    def forward(
        self, gradients: Mapping[str, TokenGradients], conditions: Sequence[Tensor] = ()
    ) -> dict[str, LowRankUpdate]:
        """The update of each matrix for each request."""
        del conditions  # MEND reads gradients alone
        rates = self.rates * self.config.rate_lr_multiplier
        return {
            name: self._update(name, gradients[name], rate)
            for name, rate in zip(self.shapes, rates, strict=True)
        }

    def _update(self, name: str, g: TokenGradients, rate: Tensor) -> LowRankUpdate:
        key, mode = self.mode_of[name]
        real = g.real
        z = self.editors[key](torch.cat([g.delta, g.x], -1)[real], mode)
        edited = z.new_zeros(*real.shape, z.shape[-1]).masked_scatter(real[..., None], z)
        left, right = edited.split([g.delta.shape[-1], g.x.shape[-1]], -1)
        if self.config.pooling == "mean":
            left = left / real.sum(1).clamp(min=1)[:, None, None]
        return LowRankUpdate(rate * left, right)


class TokenEditor(nn.Module):
    """Normalisation and low-rank layers that start as the identity.

    Args:
        width: Width of what it edits.
        num_modes: Number of matrices that share it.
        config: The options.
    """

    count: Tensor
    mean: Float[Tensor, " width"]
    squares: Float[Tensor, " width"]

    def __init__(self, width: int, num_modes: int, config: MENDConfig):
        super().__init__()
        self.normalise, rank = config.normalise, min(config.rank, width)
        num_layers = config.num_hidden + 1
        self.layers = nn.ModuleList(LowRank(width, rank, num_modes) for _ in range(num_layers))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def forward(self, z: Float[Tensor, "token width"], mode: int) -> Float[Tensor, "token width"]:
        """Edit tokens of the matrix number `mode`; in training mode, update the statistics."""
        if self.normalise:
            if self.training:
                add_to_moments(self.count, self.mean, self.squares, z)
            if self.count >= 2:
                std = (self.squares / (self.count - 1).float()).sqrt()
                z = (z - self.mean) / (std + EPSILON)
        for layer in self.layers:
            z = layer(z, mode)
        return z


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
        """Edit tokens of the matrix number `mode`."""
        inner = z @ self.v.T @ self.u.T + self.bias
        # `relu` has no gradient at 0, where all starts; `clamp` has.
        return z + (self.scale[mode] * inner + self.shift[mode]).clamp(min=0)
