"""Trainable writes: cross-attention from a span's hidden states to an edit's, and a mask on them.

Sources: VisEdit Eqs. 9-12, DualEdit Eqs. 4-6, both as in their published code where the papers are
short of it (two layer norms, a query bottleneck of two linear maps, heads, a residual).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from editors.adapters.edit_signal import EditSignalBatch
from editors.adapters.standardize import ChannelStandardizer

Init = Literal["identity", "published"]


class EditAdapter(nn.Module):
    """Moves hidden states towards an edit that they attend to.

    With `init="identity"` it starts as the identity: its output map is zero. With "published" the
    output map is drawn as any other, so that an untrained adapter disturbs the model.

    Args:
        d_model: Width of what it moves.
        d_adapter: Width inside.
        num_heads: Of its attention.
        init: How the output map starts.
        mapper: Whether it has an influence mapper.
        d_signal: Width of what it attends to, by default `d_model`.

    Raises:
        ValueError: The heads do not divide the width inside.
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
        """The moved states, each example's by its own edit."""
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
        """The influence mapper's scores, before the sigmoid; both arguments are states here."""
        if self.mapper is None:
            raise AttribError("this adapter has no influence mapper; build it with mapper=True")
        return self.mapper(self.units(h.float()), self.units(last.float()))

    def _split(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch heads pos d_head"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class InfluenceMapper(nn.Module):
    """How much each visual token matters to what an edit's prompt asks (VisEdit Eqs. 11-12)."""

    def __init__(self, d_model: int, d_mapper: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.norm_prompt = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.visual = Residual(d_model, d_mapper)
        self.prompt = Residual(d_model, d_mapper)

    def forward(
        self, h: Float[Tensor, "batch pos d_model"], last: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch pos"]:
        """Scores before the sigmoid; `last` is the state of the edit's last prompt token."""
        a = self.visual(self.norm(h.float()))
        g = self.prompt(self.norm_prompt(last.float()))
        # The mean over heads of <a, g> / sqrt(d_head) is one inner product of the whole vectors.
        scale = self.num_heads * (a.shape[-1] / self.num_heads) ** 0.5
        return torch.einsum("bpd,bd->bp", a, g) / scale


class Residual(nn.Module):
    """A two-layer perceptron around which its input is added."""

    def __init__(self, d_model: int, d_hidden: int):
        super().__init__()
        self.into, self.out = nn.Linear(d_model, d_hidden), nn.Linear(d_hidden, d_model)

    def forward(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """`x` and what the perceptron adds to it."""
        return x + self.out(self.into(x).relu())
