"""SERAC's options and two networks: the scope classifier, and the model that answers in scope.

Source: Mitchell et al. 2022 ("Memory-Based Model Editing at Scale") in the form of LiveEdit's code:
both read the model's own states, so that an edit's image is part of it, and the answer leaves
through the model's frozen final norm and output embedding. Unlike there, both are transformers
without pre-training, of a size that is an option.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from editors.adapters import ChannelStandardizer
from editors.adapters.edit_signal import pad_states
from editors.methods import baseline_presets
from editors.training.config import TrainingConfig
from editors.training.presets import Preset

EDIT_PROMPT, EDIT_TARGET, QUERY = range(3)  # kinds of positions
LONGEST_WAVE = 10_000.0  # in positions (Vaswani et al. 2017)


class SERACConfig(TrainingConfig):
    """Options of SERAC: the sizes of its networks, and what the classifier reads.

    Attributes:
        width: Width of the counterfactual model (published: 768, OPT-125m's).
        num_layers: Its layers (12).
        num_heads: Its attention heads (12), and the classifier's.
        scope_width: Width of the classifier (768, BERT's).
        scope_num_layers: Its layers (12).
        scope_layer: The layer of the model whose states it reads; None for the middle one.
        scope_weight: Weight of its term of the loss.
        own_units: Whether both networks see every channel standardised over the training edits,
            and answers are made in these units (not published): single channels of large models
            hide the others.
    """

    presets: ClassVar[Mapping[str, Preset]] = baseline_presets.SERAC
    large: ClassVar[str] = "serac-liveedit"

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    scope_width: int = 768
    scope_num_layers: int = 12
    scope_layer: int | None = None
    scope_weight: float = 1.0
    own_units: bool = False


class Counterfactual(nn.Module):
    """Predicts the states before the final norm, for an input in the scope of an edit.

    A causal transformer over the edit (its image, prompt and target) followed by the input.
    Positions count from the last prompt token of each, so that the n-th answer token has the
    position of the n-th token of the edit's target.
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
        edit_position: Int[Tensor, "batch edit_pos"],
        edit_real: Bool[Tensor, "batch edit_pos"],
        query: Float[Tensor, "batch pos d_model"],
        query_position: Int[Tensor, "batch pos"],
        query_real: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """States at the input's positions.

        Args:
            edit: Input embeddings of the edit, padded on the right.
            edit_position: 0 for the last prompt token, above 0 for the target.
            edit_real: False on padding.
            query: Embeddings of the input, padded on either side.
            query_position: 0 for the last prompt token.
            query_real: False on padding.
        """
        kind = torch.where(edit_position > 0, EDIT_TARGET, EDIT_PROMPT)
        kind = torch.cat([kind, torch.full_like(query_position, QUERY)], 1)
        position = torch.cat([edit_position, query_position], 1)
        h = self.enter(self.units(torch.cat([edit, query], 1).float()))
        h = h + self.kinds(kind) + sinusoidal_positions(position, h.shape[-1])
        real = torch.cat([edit_real, query_real], 1)
        causal = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        mask = (causal & real[:, None, :])[:, None]
        for layer in self.layers:
            h = layer(h, mask)
        return self.units_out.inverse(self.leave(h[:, edit.shape[1] :]))


class Scope(nn.Module):
    """Vectors of prompts, whose inner product tells whether two prompts share a scope.

    A transformer over the prompt's states at one layer and the mean state of its image; the vector
    is a linear map of their mean, maximum and minimum. Targets are not read, neither of inputs nor
    of edits, and all maps are trained.
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
            real: False on padding.
            image: Mean state of the image's tokens.
            has_image: Whether there is an image.
        """
        picture = self.image(self.units_image(image.float()))[:, None]
        h = torch.cat([picture, self.enter(self.units(words.float()))], 1)
        real = torch.cat([has_image[:, None], real], 1)
        for layer in self.layers:
            h = layer(h, real[:, None, None, :])
        h, kept = self.norm(h), real[..., None]
        mean = torch.where(kept, h, 0).sum(1) / real.sum(1, keepdim=True)
        highest = h.masked_fill(~kept, -math.inf).amax(1)
        lowest = h.masked_fill(~kept, math.inf).amin(1)
        return self.read(torch.cat([mean, highest, lowest], 1))

    def scores(
        self, one: Float[Tensor, "query axis"], other: Float[Tensor, "edit axis"]
    ) -> Float[Tensor, "query edit"]:
        """Similarity of vectors; `none` is the score of no edit at all."""
        return one @ other.T / math.sqrt(one.shape[1])


class Networks(nn.Module):
    """Both networks, as they are trained and saved."""

    def __init__(self, answer: Counterfactual, scope: Scope):
        super().__init__()
        self.answer, self.scope = answer, scope


def networks(vlm: VLM, config: SERACConfig, seed: int) -> Networks:
    """Both untrained networks, on the device of the model's last layer.

    Raises:
        AttribError: The number of heads does not divide a width.
    """
    heads = config.num_heads
    for width in (config.width, config.scope_width):
        if width % (2 * heads):
            raise AttribError(
                f"a width of {width} for {heads} heads: expected a multiple of {2 * heads}"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answer = Counterfactual(vlm.d_model, config.width, config.num_layers, heads)
        scope = Scope(vlm.d_model, config.scope_width, config.scope_num_layers, heads)
    return Networks(answer, scope).to(execution_device(vlm.layers[vlm.num_layers - 1]))


class Projection(nn.Module):
    """A norm, a linear map to another width, and a residual perceptron."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.norm, self.map = nn.LayerNorm(d_in), nn.Linear(d_in, d_out)
        self.inner = nn.Sequential(nn.Linear(d_out, d_out), nn.ReLU(), nn.Linear(d_out, d_out))

    def forward(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_out"]:
        """The projected states."""
        h = self.map(self.norm(x))
        return h + self.inner(h)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.norm_mlp = nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, h: Float[Tensor, "batch pos width"], mask: Bool[Tensor, "batch 1 query pos"]
    ) -> Float[Tensor, "batch pos width"]:
        """The layer's output; `mask` is True where a query (or all of them) sees a position."""
        split = self.qkv(self.norm(h)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm_mlp(h))


def sinusoidal_positions(
    position: Int[Tensor, "batch pos"], width: int
) -> Float[Tensor, "batch pos width"]:
    """Sines and cosines of positions, which may be negative (Vaswani et al. 2017)."""
    half = width // 2
    rates = LONGEST_WAVE ** (-torch.arange(half, device=position.device) / half)
    angles = position[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def pad_with_positions(
    states: Sequence[Float[Tensor, "_ d_model"]], last: Sequence[int]
) -> tuple[Float[Tensor, "batch pos d_model"], Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Pad states on the right: states, positions from the `last` prompt token, which are real."""
    padded, real = pad_states(states)
    offset = torch.tensor(last, device=padded.device)[:, None]
    return padded, torch.arange(padded.shape[1], device=padded.device) - offset, real
