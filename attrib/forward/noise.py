"""Gaussian noise on the hidden states of one modality, in units of those states or absolute.

The noise belongs to an example: it is the same in any batch, order, shard and on any device. One
base draw per (seed, example, span, draw), made on the CPU, serves all layers and sigmas, so that
curves over layers and sigmas differ by these alone.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.model.batch import Batch
from attrib.vocabulary import Modality, NoiseModality, Unit

NOISY_SPANS: dict[NoiseModality, tuple[Modality, ...]] = {
    "text": ("text",),
    "visual": ("visual",),
    "both": ("visual", "text"),
}


def example_ids(batch: Batch) -> tuple[str, ...]:
    """The ids of the examples, or hashes of their tokens if they have none."""
    return batch.ids or tuple(
        _digest(ids[real].tolist())
        for ids, real in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"].bool(), strict=True
        )
    )


def base_noise(
    batch: Batch, span: Modality, d_model: int, *, seed: int, draw: int = 0
) -> Float[Tensor, "batch pos d_model"]:
    """Standard normal noise at the positions of a span, 0 elsewhere; float32, on the CPU.

    An example's noise depends on its id, the span, `seed` and `draw`, in the order of the span's
    positions: padding does not change it.
    """
    at = batch[span].cpu()
    noise = torch.zeros(*at.shape, d_model)
    for row, (inside, name) in enumerate(zip(at, example_ids(batch), strict=True)):
        key = int(_digest([seed, name, span, draw])[:15], 16)
        generator = torch.Generator().manual_seed(key)
        noise[row, inside] = torch.randn(int(inside.sum()), d_model, generator=generator)
    return noise


def perturbed_positions(
    batch: Batch, modality: NoiseModality, exclude_last: bool = False
) -> Bool[Tensor, "batch pos"]:
    """The positions that noise on a modality perturbs."""
    at = torch.stack([batch[span] for span in NOISY_SPANS[modality]]).any(0)
    return at & ~batch["last"] if exclude_last else at


@dataclass(frozen=True, eq=False)
class NoiseDraw:
    """One draw of unit noise on a batch; its scale in a layer depends on the layer's states.

    Attributes:
        at: Perturbed positions.
        spans: The spans of the modality; the scale of each is measured separately.
        noise: Standard normal on the spans.
        unit: "std" for standard deviations of an example's states over a span's positions and
            channels, "abs" for absolute noise.
    """

    at: Bool[Tensor, "batch pos"]
    spans: tuple[Bool[Tensor, "batch pos"], ...]
    noise: Float[Tensor, "batch pos d_model"]
    unit: Unit

    def to(self, device: torch.device) -> "NoiseDraw":
        """The noise on another device."""
        spans = tuple(span.to(device) for span in self.spans)
        return NoiseDraw(self.at.to(device), spans, self.noise.to(device), self.unit)

    def scaled(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The noise of sigma 1 for a layer's output `h`, in float32 or better."""
        if self.unit == "abs":
            return self.noise
        scales = [deviation(h, span)[:, None] * span for span in self.spans]
        return torch.stack(scales).sum(0)[..., None] * self.noise


def deviation(
    h: Float[Tensor, "batch pos d_model"], span: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Standard deviation of an example's states over a span's positions and channels, or 0."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    inside = span[..., None]
    count = span.sum(1).clamp(min=1) * h.shape[-1]
    mean = wide.where(inside, 0.0).sum((1, 2)) / count
    centered = (wide - mean[:, None, None]).where(inside, 0.0)
    return (centered.square().sum((1, 2)) / (count - 1)).sqrt()


def draw_noise(
    batch: Batch,
    modality: NoiseModality,
    d_model: int,
    start: int,
    *,
    unit: Unit,
    exclude_last: bool,
    seed: int,
    draw: int,
) -> NoiseDraw:
    """One draw of noise on the positions from `start` on, on the batch's device."""
    device = batch["last"].device
    parts = [base_noise(batch, s, d_model, seed=seed, draw=draw) for s in NOISY_SPANS[modality]]
    return NoiseDraw(
        perturbed_positions(batch, modality, exclude_last)[:, start:],
        tuple(batch[span][:, start:] for span in NOISY_SPANS[modality]),
        torch.stack(parts).sum(0)[:, start:].to(device),
        unit,
    )


def _digest(parts: list) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
