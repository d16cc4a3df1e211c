"""Gaussian noise on the hidden states of one modality, in units of those states or absolute."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.forward.noise import NoisySpan, Unit, base_noise
from attrib.model.batch import Batch

Modality = Literal["text", "visual", "both"]
SPANS: dict[Modality, tuple[NoisySpan, ...]] = {
    "text": ("text",),
    "visual": ("visual",),
    "both": ("visual", "text"),
}


def disturbed_positions(
    batch: Batch, modality: Modality, spare_last: bool = False
) -> Bool[Tensor, "batch pos"]:
    """Where noise on a modality lands."""
    at = torch.stack([batch[span] for span in SPANS[modality]]).any(0)
    return at & ~batch["last"] if spare_last else at


@dataclass(frozen=True, eq=False)
class Disturbance:
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


def disturbance(
    batch: Batch,
    modality: Modality,
    d_model: int,
    start: int,
    *,
    unit: Unit,
    spare_last: bool,
    seed: int,
    draw: int,
) -> Disturbance:
    """One draw of noise on the positions from `start` on, where the batch is."""
    device = batch["last"].device
    parts = [base_noise(batch, s, d_model, seed=seed, draw=draw) for s in SPANS[modality]]
    return Disturbance(
        disturbed_positions(batch, modality, spare_last)[:, start:],
        tuple(batch[span][:, start:] for span in SPANS[modality]),
        torch.stack(parts).sum(0)[:, start:].to(device),
        unit,
    )
