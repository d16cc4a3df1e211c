"""The visual tokens of a batch: positions, neighbours, noise for their states, and gradients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import gather_positions, on_output, position_index, read
from attrib.forward.noise import base_noise
from attrib.forward.replay import capture
from attrib.model.batch import Batch, Grid
from attrib.model.precision import normalized, widened
from attrib.model.vlm import VLM
from attrib.vocabulary import NoiseSite, Unit

# A sum over channels may be off by this many roundings of the sum of sizes: 1.3 in float32, 0.4 in
# float16 and bfloat16 (measured on the embedded models).
ROUNDING = 2


def require_images(batch: Batch) -> None:
    """Raise AttribError if a request of the batch has no visual tokens."""
    if not batch["visual"].any(1).all():
        raise AttribError("this request is text only: a heatmap needs an image")


@dataclass(frozen=True)
class Perturbation:
    """How visual states are perturbed; see `heatmaps`."""

    noise: float = 3.0
    unit: Unit = "std"
    radius: int = 0
    draws: int = 1
    seed: int = 0
    site: NoiseSite = "block"

    def __post_init__(self):
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise AttribError(f"noise: expected a finite number of 0 or more, got {self.noise}")
        for name, kind in (("unit", Unit), ("site", NoiseSite)):
            if (value := getattr(self, name)) not in get_args(kind):
                choices = " or ".join(f'"{one}"' for one in get_args(kind))
                raise AttribError(f"{name}: expected {choices}, got {value!r}")
        if self.radius < 0 or self.draws < 1:
            raise AttribError(
                f"expected a radius from 0 and draws from 1 on, got {self.radius} and {self.draws}"
            )


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Visual tokens, counted from an example's first one; shorter rows are padded.

    Attributes:
        at: Their positions; the last prompt token's where a row is padded.
        real: False where a row is padded.
        last: Position of the last prompt token.
    """

    at: Int[Tensor, "batch token"]
    real: Bool[Tensor, "batch token"]
    last: Int[Tensor, " batch"]

    @classmethod
    def of(cls, batch: Batch) -> "VisualTokens":
        """The visual tokens of a batch.

        Raises:
            AttribError: No example has any, or the last prompt token of one is visual.
        """
        visual, last = batch["visual"], position_index(batch["last"])
        if not visual.any():
            raise AttribError(
                "no example of this batch has visual tokens: a heatmap needs an image; "
                "attrib.attention shows which text the model attends to"
            )
        if (visual & batch["last"]).any():
            raise AttribError("the last prompt token is a visual one: put text after the image")
        real = torch.arange(int(visual.sum(1).max()), device=visual.device)
        real = real < visual.sum(1, keepdim=True)
        at = last.long()[:, None].expand(real.shape).clone()
        at[real] = visual.nonzero()[:, 1]
        return cls(at, real, last.long())

    def gather(
        self, values: Float[Tensor, "batch pos channel"]
    ) -> Float[Tensor, "batch token channel"]:
        """`values` at the tokens."""
        return gather_positions(values, self.at)

    def noise(self, batch: Batch, d_model: int, seed: int, draw: int) -> Tensor:
        """Standard normal noise, Float "batch token d_model" on the CPU; 0 where padded."""
        drawn = self.gather(base_noise(batch, "visual", d_model, seed=seed, draw=draw))
        return drawn * self.real.cpu()[..., None]

    def std(self, states: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch 1 1"]:
        """Standard deviation of each example's states over tokens and channels; 0 without any."""
        each = [
            h[real].std() if real.any() else h.new_zeros(())
            for h, real in zip(states, self.real.to(states.device), strict=True)
        ]
        return torch.stack(each)[:, None, None]

    def neighbours(self, batch: Batch, radius: int) -> Bool[Tensor, "batch token token"]:
        """Whether two tokens are at most `radius` rows and columns apart on the grid of an image.

        A token outside the grid (of a tile beside the whole image) has only itself as neighbour.

        Raises:
            AttribError: An example has visual tokens but no grid.
        """
        tokens = self.at.shape[1]
        neighbours = torch.eye(tokens, dtype=torch.bool).repeat(batch.size, 1, 1)
        pictures = batch.pictures or ((),) * batch.size
        for one, own, real in zip(neighbours, pictures, self.real, strict=True):
            grids = [picture.grid for picture in own]
            if real.any() and (None in grids or not grids):
                raise AttribError(
                    f"radius {radius}: the visual tokens have no place on a grid (queries of a "
                    "Q-Former see the whole image), so they have no neighbours: use radius=0"
                )
            for grid in filter(None, grids):
                inside = slice(grid.first, grid.first + grid.rows * grid.cols)
                one[inside, inside] = _within(grid, radius)
        return neighbours.to(self.at.device)


def _within(grid: Grid, radius: int) -> Bool[Tensor, "cell cell"]:
    row = torch.arange(grid.rows).repeat_interleave(grid.cols)
    col = torch.arange(grid.cols).repeat(grid.rows)
    distances = [(place[:, None] - place).abs() for place in (row, col)]
    return torch.maximum(*distances) <= radius


def gradient_times_input(vlm: VLM, batch: Batch) -> Float[Tensor, "batch layer visual"]:
    """Gradient of the predicted token's logit times each layer's input at a visual token.

    A baseline for heatmaps (Simonyan et al. 2013; Shrikumar et al. 2016). The logit is that at the
    last prompt position; the product is summed over channels. To first
    order it is the drop of the logit if the state were scaled to zero. One backward pass gives all
    layers. NaN past an example's visual tokens; 0 for a map whose every value is a rounding error.
    That of the last layer is, since only the normed states of other positions count there, which
    do not change with the length of a state.

    Raises:
        AttribError: No image in the batch.
    """
    tokens = VisualTokens.of(batch)
    with torch.enable_grad(), _differentiable(vlm), capture(vlm) as captured, read(vlm) as hidden:
        vlm.last_logits(batch)
        last = gather_positions(hidden[vlm.num_layers - 1], tokens.last)
        total = _largest_logits(vlm, last).sum()
    inputs = [captured.embed, *(hidden[layer] for layer in range(vlm.num_layers - 1))]
    gradients = torch.autograd.grad(total, inputs)
    layers, wide = [], widened(total.dtype)
    for layer, (states, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        # Writes between two layers (Qwen3-VL) belong to the input of the second.
        entering = captured.inputs[layer][1] if layer in captured.inputs else states
        product = entering.detach().to(wide) * gradient.to(wide)
        both = torch.stack([product.sum(-1), product.abs().sum(-1)], -1)
        value, size = tokens.gather(both).unbind(-1)
        is_noise = value.abs() <= ROUNDING * torch.finfo(vlm.dtype).eps * size
        is_noise |= ~tokens.real.to(is_noise.device)
        value = value.masked_fill(is_noise.all(1, keepdim=True), 0)
        layers.append(value.to(tokens.at.device))
    values = torch.stack(layers, 1)
    return values.masked_fill(~tokens.real[:, None], torch.nan)


def _largest_logits(vlm: VLM, h: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
    """Each example's largest logit, in float32 or wider, differentiable at the cost of one row."""
    with torch.no_grad():
        key = vlm.unembed_float32(h).argmax(-1)
    direction, bias = vlm.unembedding.directions(key)
    normed = normalized(vlm.components.norm, h)
    logits = (normed * direction.to(normed.device)).sum(-1) + bias.to(normed.device)
    return vlm.unembedding.map.capped(logits)


@contextmanager
def _differentiable(vlm: VLM) -> Iterator[None]:
    """Build an autograd graph from the embeddings on, in a frozen model."""
    # Not the weight itself: offloaded weights are made anew in each pass.
    with on_output(vlm.model.get_input_embeddings(), lambda h: h.detach().requires_grad_().clone()):
        yield
