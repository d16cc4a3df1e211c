"""Noise sensitivity from one whole pass per layer, size and draw of noise.

Slower than `attrib.analyses.sensitivity`, whose values it has. It serves models with hooks that
need whole passes, such as edits of hidden states, which read and write positions of a prompt.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.sensitivity import SIGMAS, check_arguments
from attrib.forward.hooks import read, write
from attrib.forward.noise import NoiseDraw, draw_noise, perturbed_positions
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.vocabulary import NoiseModality, Unit


@torch.no_grad()
def sensitivity_by_passes(
    vlm: VLM,
    batch: Batch,
    modality: NoiseModality = "text",
    sigmas: Sequence[float] = SIGMAS,
    unit: Unit = "std",
    draws: int = 1,
    seed: int = 0,
    *,
    layers: Iterable[int] | None = None,
    exclude_last: bool = False,
    max_copies: int | None = None,
) -> Float[Tensor, "batch layer sigma"]:
    """The values of `attrib.sensitivity`; `max_copies` is not needed: a pass has one copy."""
    chosen = check_arguments(vlm, modality, sigmas, unit, draws, layers, max_copies)
    with read(vlm) as hidden:
        clean = vlm.last_logits(batch)
    values = torch.zeros(batch.size, len(chosen), len(sigmas), dtype=torch.float64)
    for draw in range(draws):
        noise = draw_noise(
            batch, modality, vlm.d_model, 0,
            unit=unit, exclude_last=exclude_last, seed=seed, draw=draw,
        )  # fmt: skip
        for i, layer in enumerate(chosen):
            on = noise.to(hidden[layer].device)
            scaled = on.scaled(hidden[layer])
            for j, sigma in enumerate(sigmas):
                values[:, i, j] += _divergence(vlm, batch, clean, layer, on, sigma * scaled) / draws
    known = perturbed_positions(batch, modality, exclude_last).any(1).cpu()
    return values.where(known[:, None, None], torch.nan).float().to(clean.device)


def _divergence(
    vlm: VLM,
    batch: Batch,
    clean: Float[Tensor, "batch d_vocab"],
    layer: int,
    noise: NoiseDraw,
    added: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, " batch"]:
    with write(vlm, layer, lambda h: (h + added).to(h.dtype), at=noise.at):
        noisy = vlm.last_logits(batch)
    wide = torch.float32 if clean.device.type == "mps" else torch.float64
    p, q = (logits.float().to(wide)[:, None] for logits in (clean, noisy))
    return kl(p, q, torch.ones_like(p[..., 0], dtype=torch.bool)).cpu().double()
