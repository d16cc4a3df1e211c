"""SERAC's two networks: one tells whether a question is about an edit, one answers it if so.

Source: Mitchell et al. 2022 ("Memory-Based Model Editing at Scale") in the form of LiveEdit's code:
both work on the model's own states, so that an edit's image is part of it, and the answer leaves
through the model's frozen final norm and output embedding. Unlike there, both are transformers
without pre-training, of a size that is a setting.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from editors.adapters.adapter import ChannelStandardizer

EDIT_PROMPT, EDIT_TARGET, QUERY = range(3)  # kinds of positions
LONGEST_WAVE = 10_000.0  # in positions (Vaswani et al. 2017)


class Counterfactual(nn.Module):
    """States in front of the final norm, for a question that an edit is about.

    A causal transformer over the edit (its image, prompt and target) and the question behind it.
    Positions are counted from the last prompt token of each, so that the answer's n-th token stands
    where the n-th token of the edit's target does.
    """

    def __init__(self, d_model: int, width: int, num_layers: int, num_heads: int):
        super().__init__()
        self.units, self.units_out = ChannelStandardizer(d_model), ChannelStandardizer(d_model)
        self.enter, self.leave = Projection(d_model, width), Projection(width, d_model)
        self.kinds = nn.Embedding(3, width)
        self.layers = nn.ModuleList([Layer(width, num_heads) for _ in range(num_layers)])

    def forward(
        self,
        edit: Float[Tensor, "batch edit_pos d_model"],
        edit_place: Int[Tensor, "batch edit_pos"],
        edit_real: Bool[Tensor, "batch edit_pos"],
        query: Float[Tensor, "batch pos d_model"],
        query_place: Int[Tensor, "batch pos"],
        query_real: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """States of the question's positions.

        Args:
            edit: Input embeddings of the edit, padded on the right.
            edit_place: Position of each, 0 for the last prompt token, above 0 for the target.
            edit_real: Which are not padding.
            query: Input embeddings of the question, padded anywhere.
            query_place: Position of each, 0 for the last prompt token.
            query_real: Which are not padding.
        """
        kind = torch.where(edit_place > 0, EDIT_TARGET, EDIT_PROMPT)
        kind = torch.cat([kind, torch.full_like(query_place, QUERY)], 1)
        place = torch.cat([edit_place, query_place], 1)
        h = self.enter(self.units(torch.cat([edit, query], 1).float()))
        h = h + self.kinds(kind) + sinusoidal_positions(place, h.shape[-1])
        real = torch.cat([edit_real, query_real], 1)
        causal = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        seen = (causal & real[:, None, :])[:, None]
        for layer in self.layers:
            h = layer(h, seen)
        return self.units_out.inverse(self.leave(h[:, edit.shape[1] :]))


class Scope(nn.Module):
    """Vectors of prompts, whose inner product tells whether one is about what the other is about.

    A transformer over the prompt's states at one layer and the mean over its image's; the vector is
    a linear map of the mean, the maximum and the minimum over them. No answer is read, neither of
    questions nor of edits, and all maps are trained.
    """

    def __init__(self, d_model: int, width: int, num_layers: int, num_heads: int):
        super().__init__()
        self.units, self.units_image = ChannelStandardizer(d_model), ChannelStandardizer(d_model)
        self.enter, self.image = Projection(d_model, width), Projection(d_model, width)
        self.layers = nn.ModuleList([Layer(width, num_heads) for _ in range(num_layers)])
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(3 * width, width)
        self.none = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        words: Float[Tensor, "batch word d_model"],
        real: Bool[Tensor, "batch word"],
        image: Float[Tensor, "batch d_model"],
        has_image: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch width"]:
        """One vector per prompt.

        Args:
            words: States of the prompt's words.
            real: Which are not padding.
            image: Mean state of the image's tokens.
            has_image: Where there is one.
        """
        picture = self.image(self.units_image(image.float()))[:, None]
        h = torch.cat([picture, self.enter(self.units(words.float()))], 1)
        real = torch.cat([has_image[:, None], real], 1)
        seen = real[:, None, None, :]
        for layer in self.layers:
            h = layer(h, seen)
        h, there = self.norm(h), real[..., None]
        mean = torch.where(there, h, 0).sum(1) / real.sum(1, keepdim=True)
        highest = h.masked_fill(~there, -math.inf).amax(1)
        lowest = h.masked_fill(~there, math.inf).amin(1)
        return self.read(torch.cat([mean, highest, lowest], 1))

    def scores(
        self, one: Float[Tensor, "query axis"], other: Float[Tensor, "edit axis"]
    ) -> Float[Tensor, "query edit"]:
        """How alike; `none` is the score of no edit at all."""
        return one @ other.T / math.sqrt(one.shape[1])


class Networks(nn.Module):
    """Both, as they are trained and saved."""

    def __init__(self, answer: Counterfactual, scope: Scope):
        super().__init__()
        self.answer, self.scope = answer, scope


class Projection(nn.Module):
    """From states of one width to those of another: a norm, a linear map, and a residual one."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.norm, self.map = nn.LayerNorm(d_in), nn.Linear(d_in, d_out)
        self.inner = nn.Sequential(nn.Linear(d_out, d_out), nn.ReLU(), nn.Linear(d_out, d_out))

    def forward(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_out"]:
        """The mapped states."""
        h = self.map(self.norm(x))
        return h + self.inner(h)


class Layer(nn.Module):
    """A transformer layer with its norms in front."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.norm_mlp = nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, h: Float[Tensor, "batch pos width"], seen: Bool[Tensor, "batch 1 query pos"]
    ) -> Float[Tensor, "batch pos width"]:
        """The states after it; `seen` tells which positions each sees, or all."""
        split = self.qkv(self.norm(h)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm_mlp(h))


def sinusoidal_positions(
    place: Int[Tensor, "batch pos"], width: int
) -> Float[Tensor, "batch pos width"]:
    """Sines and cosines of positions, which may be negative."""
    half = width // 2
    rates = LONGEST_WAVE ** (-torch.arange(half, device=place.device) / half)
    angles = place[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
