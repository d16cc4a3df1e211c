"""Edit adapters: cross-attention from the states of a span to those of an edit.

Sources: VisEdit Eqs. 9-11 and DualEdit Sec. 3.2, with the published code where the papers leave
details open (two layer norms, a query bottleneck of two linear maps, heads, a residual).
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from editors.adapters.edit_signal import EditSignalBatch
from editors.adapters.moments import add_to_moments

Init = Literal["identity", "published"]
SMALLEST = 0.1  # of the median standard deviation: the least by which a channel is divided
SINK = 10.0  # median norms: the states of the embedded decoders of ten layers reach 6


class ChannelStandardizer(nn.Module):
    """Standardises each channel of hidden states; the identity until it is fitted.

    Some channels of large models are so large that a layer norm leaves little of the others.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.zero: Tensor
        self.size: Tensor
        self.register_buffer("zero", torch.zeros(d_model))  # the mean, under its name in files
        self.register_buffer("size", torch.ones(d_model))  # the standard deviation

    def fit(self, parts: Iterable[Float[Tensor, "some d_model"]]) -> None:
        """Take the mean and the standard deviation of each channel; of one state, neither.

        Args:
            parts: States, a few at a time: all of them in float32 need not fit into memory.
        """
        count, mean = torch.zeros_like(self.zero[0], dtype=torch.long), torch.zeros_like(self.zero)
        squares = torch.zeros_like(mean)
        for states in parts:
            add_to_moments(count, mean, squares, states.to(mean))
        if count < 2:
            return
        std = (squares / (count - 1)).sqrt()
        self.zero.copy_(mean)
        # A channel that hardly varies carries no information and must not be magnified.
        size = std.clamp(min=SMALLEST * float(std.median()))
        self.size.copy_(torch.where(size > 0, size, 1.0))

    def forward(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Return the standardised `x`."""
        return (x - self.zero) / self.size

    def inverse(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Undo `forward`."""
        return self.zero + self.size * x


def without_sinks(states: Float[Tensor, "pos d_model"]) -> Float[Tensor, "some d_model"]:
    """The states of an input but for attention sinks, of norms of `SINK` medians or more.

    In pretrained language models the first token has a few channels a hundred times as large as
    elsewhere (Sun et al., "Massive Activations in Large Language Models", 2024). It alone would set
    the standard deviation of these channels, and so how far an adapter moves all other states.
    """
    norms = states.float().norm(dim=-1)
    return states[norms < SINK * norms.median()]


class EditAdapter(nn.Module):
    """Cross-attention from hidden states to an edit, added to the hidden states.

    With `init="identity"` the output projection is zero, so that an untrained adapter has no
    effect; with "published" it is initialised like any other.

    Args:
        d_model: Width of the hidden states.
        d_adapter: Width of queries, keys and values.
        num_heads: Attention heads.
        init: Initialisation of the output projection.
        mapper: Whether an influence mapper weights the update.
        d_signal: Width of the edit's states, by default `d_model`.

    Raises:
        ValueError: `d_adapter` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        d_model: int,
        d_adapter: int,
        num_heads: int,
        init: Init = "identity",
        mapper: bool = False,
        d_signal: int | None = None,
    ):
        super().__init__()
        if d_adapter % num_heads:
            raise ValueError(f"{num_heads} heads do not divide an adapter width of {d_adapter}")
        self.num_heads = num_heads
        d_signal = d_signal or d_model
        self.units, self.units_edit = ChannelStandardizer(d_model), ChannelStandardizer(d_signal)
        self.norm, self.norm_edit = nn.LayerNorm(d_model), nn.LayerNorm(d_signal)
        self.down = nn.Linear(d_model, d_adapter)
        self.query = nn.Linear(d_adapter, d_adapter)
        self.key = nn.Linear(d_signal, d_adapter)
        self.value = nn.Linear(d_signal, d_adapter)
        self.up = nn.Linear(d_adapter, d_model)
        self.mapper = InfluenceMapper(d_model, d_adapter, num_heads) if mapper else None
        if init == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(
        self, h: Float[Tensor, "batch pos d_model"], edit: EditSignalBatch
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the updated states; each example attends to its own edit."""
        x = self.units(h.float())
        states = self.norm_edit(self.units_edit(edit.states.float()))
        q = self._split(self.query(self.down(self.norm(x))))
        k, v = self._split(self.key(states)), self._split(self.value(states))
        mask = edit.real[:, None, None, :]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        update = self.up(mixed.transpose(1, 2).flatten(2))
        if self.mapper is not None:
            update = update * self.influence(h, edit.last).sigmoid()[..., None]
        return (h.float() + self.units.size * update).to(h.dtype)

    def influence(
        self, h: Float[Tensor, "batch pos d_model"], last: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch pos"]:
        """Return the influence mapper's logits, given states of this layer."""
        if self.mapper is None:
            raise AttribError("this adapter has no influence mapper; build it with mapper=True")
        return self.mapper(self.units(h.float()), self.units(last.float()))

    def _split(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch heads pos d_head"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class InfluenceMapper(nn.Module):
    """Predicts how much each visual token matters to an edit's prompt (VisEdit Eq. 10)."""

    def __init__(self, d_model: int, d_mapper: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.norm_prompt = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.visual = Residual(d_model, d_mapper)
        self.prompt = Residual(d_model, d_mapper)

    def forward(
        self, h: Float[Tensor, "batch pos d_model"], last: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch pos"]:
        """Return logits; `last` is the state of the edit's last prompt token."""
        a = self.visual(self.norm(h.float()))
        g = self.prompt(self.norm_prompt(last.float()))
        # The mean over heads of <a, g> / sqrt(d_head) is one inner product of the whole vectors.
        scale = self.num_heads * (a.shape[-1] / self.num_heads) ** 0.5
        return torch.einsum("bpd,bd->bp", a, g) / scale


class Residual(nn.Module):
    """A two-layer perceptron with a skip connection."""

    def __init__(self, d_model: int, d_hidden: int):
        super().__init__()
        self.into, self.out = nn.Linear(d_model, d_hidden), nn.Linear(d_hidden, d_model)

    def forward(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Return `x` plus the perceptron's output."""
        return x + self.out(self.into(x).relu())
