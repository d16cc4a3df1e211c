"""Gaussian noise that belongs to an example: the same whatever batch, order, shard or device.

One base draw per (seed, example, span, draw), made on the CPU, serves all layers and all sigmas, so
that curves over layers and sigmas differ by these alone.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.model.batch import Batch

Unit = Literal["std", "abs"]
NoisySpan = Literal["visual", "text"]


def example_ids(batch: Batch) -> tuple[str, ...]:
    """The names of the examples, or where they have none, a fingerprint of their tokens."""
    return batch.ids or tuple(
        _digest(ids[real].tolist())
        for ids, real in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"].bool(), strict=True
        )
    )


def base_noise(
    batch: Batch, span: NoisySpan, d_model: int, *, seed: int, draw: int = 0
) -> Float[Tensor, "batch pos d_model"]:
    """Standard normal noise at the positions of a span, zero elsewhere; float32, on the CPU.

    An example's noise depends on its name, the span, `seed` and `draw`, and is laid out along the
    span's positions: padding does not matter.
    """
    at = batch[span].cpu()
    noise = torch.zeros(*at.shape, d_model)
    for row, (here, name) in enumerate(zip(at, example_ids(batch), strict=True)):
        key = int(_digest([seed, name, span, draw])[:15], 16)
        generator = torch.Generator().manual_seed(key)
        noise[row, here] = torch.randn(int(here.sum()), d_model, generator=generator)
    return noise


def _digest(parts: list) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


Modality = Literal["text", "visual", "both"]
SPANS: dict[Modality, tuple[NoisySpan, ...]] = {
    "text": ("text",),
    "visual": ("visual",),
    "both": ("visual", "text"),
}


def perturbed_positions(
    batch: Batch, modality: Modality, exclude_last: bool = False
) -> Bool[Tensor, "batch pos"]:
    """Where noise on a modality lands."""
    at = torch.stack([batch[span] for span in SPANS[modality]]).any(0)
    return at & ~batch["last"] if exclude_last else at


@dataclass(frozen=True, eq=False)
class NoiseDraw:
    """Noise of size one on a batch; its size in a layer depends on the layer's states.

    Attributes:
        at: Where it lands.
        spans: The modality's spans; each is measured by itself.
        noise: Standard normal, on the spans.
        unit: "std", in standard deviations of an example's states over a span's positions and
            channels; "abs", as it is.
    """

    at: Bool[Tensor, "batch pos"]
    spans: tuple[Bool[Tensor, "batch pos"], ...]
    noise: Float[Tensor, "batch pos d_model"]
    unit: Unit

    def of(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The noise that sigma 1 means for a layer's output `h`, in float32 or better."""
        if self.unit == "abs":
            return self.noise
        sizes = [deviation(h, span)[:, None] * span for span in self.spans]
        return torch.stack(sizes).sum(0)[..., None] * self.noise


def deviation(
    h: Float[Tensor, "batch pos d_model"], span: Bool[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Standard deviation of an example's states over a span's positions and channels, or 0."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    inside = span[..., None]
    count = span.sum(1).clamp(min=1) * h.shape[-1]
    mean = wide.where(inside, 0.0).sum((1, 2)) / count
    off = (wide - mean[:, None, None]).where(inside, 0.0)
    return (off.square().sum((1, 2)) / (count - 1)).sqrt()


def draw_noise(
    batch: Batch,
    modality: Modality,
    d_model: int,
    start: int,
    *,
    unit: Unit,
    exclude_last: bool,
    seed: int,
    draw: int,
) -> NoiseDraw:
    """One draw of noise on the positions from `start` on, where the batch is."""
    device = batch["last"].device
    parts = [base_noise(batch, s, d_model, seed=seed, draw=draw) for s in SPANS[modality]]
    return NoiseDraw(
        perturbed_positions(batch, modality, exclude_last)[:, start:],
        tuple(batch[span][:, start:] for span in SPANS[modality]),
        torch.stack(parts).sum(0)[:, start:].to(device),
        unit,
    )
