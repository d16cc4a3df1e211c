"""How much the output moves when noise hits one modality in one layer (DualEdit, Fig. 2).

    sensitivity = KL(p || p~), in nats, at the last prompt token                         (Fig. 2)

where p is the model's next-token distribution, and p~ the one after noise N(0, sigma^2) was added
to the output of layer l at the positions of a modality, every later layer running on as it does.

The paper's text gives neither values nor unit of sigma. The default runs from noise that a layer
hardly feels to noise as large as its states: hidden states grow with depth, by an order of
magnitude and more, so the unit "std" (an example's own states over the disturbed span) compares
layers, and "abs" mostly shows that growth. An example's noise is the same in all layers and, up to
its size, for all sigmas. In "both" each modality gets the noise it gets alone, in its own unit.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.analyses.chunks import in_chunks
from attrib.analyses.sweep import SIGMAS, checked, nothing_to_disturb, versions_at_once
from attrib.errors import AttribError
from attrib.forward.cutting import clean_pass, suffix_of
from attrib.forward.disturbance import (
    Disturbance,
    Modality,
    disturbance,
    disturbed_positions,
)
from attrib.forward.noise import Unit
from attrib.forward.suffix import Suffix
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

ROWS_OF_LOGITS = 64  # in float64 at a time: a vocabulary is wide


@torch.no_grad()
def sensitivity(
    vlm: VLM,
    batch: Batch,
    modality: Modality = "text",
    sigmas: Sequence[float] = SIGMAS,
    unit: Unit = "std",
    draws: int = 1,
    seed: int = 0,
    *,
    layers: Iterable[int] | None = None,
    spare_last: bool = False,
    max_versions: int | None = None,
) -> Float[Tensor, "batch layer sigma"]:
    """KL divergence of the output from the clean one, in nats, under noise in one layer at a time.

    Equal to one forward pass per layer, sigma and draw with noise written into it, up to rounding;
    computed from the layers and positions that noise reaches alone (`attrib.forward.suffix`).

    Args:
        vlm: The model.
        batch: Prompts with their images.
        modality: Where the noise lands: "text", "visual", or "both". The beginning-of-sequence
            token belongs to neither.
        sigmas: Sizes of the noise; 0 gives exactly 0.
        unit: "std": sigma counts standard deviations of the example's own states in that layer,
            over the modality's positions and all channels. "abs": sigma is that of the noise.
        draws: Number of independent draws of noise that the result is the mean of.
        seed: Of the noise, which further depends on the example's name and the modality alone.
        layers: Which layers, all by default; the result has them in this order.
        spare_last: Leave the last prompt token alone, which the answer is read from.
        max_versions: How many disturbed examples to run at once; less where memory runs out.

    Returns:
        In float32; NaN for an example that has no token of the modality, or whose logits are NaN.

    Raises:
        AttribError: An argument is out of range, or no example has a token of the modality.
    """
    chosen = checked(vlm, modality, sigmas, unit, draws, layers, max_versions)
    at = disturbed_positions(batch, modality, spare_last)
    if not at.any():
        raise AttribError(nothing_to_disturb(modality))
    clean = clean_pass(vlm, batch)
    suffix = suffix_of(clean, int(at.any(0).int().argmax()))
    logits = clean.logits
    del clean  # the suffix holds what is still needed
    loud = [j for j, sigma in enumerate(sigmas) if sigma > 0]
    rows = at.any(1).nonzero()[:, 0].cpu()
    values = torch.full((batch.size, vlm.num_layers, len(sigmas)), torch.nan, dtype=torch.float64)
    values[rows] = 0.0
    versions = torch.cartesian_prod(
        torch.tensor(sorted(set(chosen))), torch.tensor(loud, dtype=torch.long), rows
    )
    for draw in range(draws if loud else 0):
        noise = disturbance(
            batch, modality, vlm.d_model, suffix.start,
            unit=unit, spare_last=spare_last, seed=seed, draw=draw,
        )  # fmt: skip
        moved = _divergences(suffix, noise, versions, sigmas, logits, max_versions)
        layer, sigma, row = versions.T
        values[row, layer, sigma] += moved / draws
    values[logits.isnan().any(1).cpu()] = torch.nan
    return values[:, chosen].float().to(logits.device)


def _divergences(
    suffix: Suffix,
    noise: Disturbance,
    versions: Int[Tensor, "version three"],
    sigmas: Sequence[float],
    clean: Float[Tensor, "batch d_vocab"],
    max_versions: int | None,
) -> Float[Tensor, " version"]:
    """KL from the clean output of each version (layer, index of its sigma, example), in float64."""
    device = clean.device
    layers, rows = versions[:, 0].tolist(), versions[:, 2].to(device)
    sigma = torch.tensor(sigmas, dtype=torch.float64)[versions[:, 1]].to(device, torch.float32)
    of_layer = lru_cache(maxsize=1)(lambda layer: noise.of(suffix.hidden[layer]))

    def run(some: slice) -> Tensor:
        def disturbed(part: slice) -> Tensor:
            here = slice(some.start + part.start, some.start + part.stop)
            layer, row = layers[here.start], rows[here]
            h = suffix.hidden[layer][row]
            new = h + sigma[here, None, None] * of_layer(layer)[row]
            return torch.where(noise.at[row][..., None], new.to(h.dtype), h)

        last = suffix.run(layers[some], rows[some], disturbed)
        return _kl_of(suffix.vlm, last, clean, rows[some])

    at_once = versions_at_once(suffix, max_versions)
    return torch.cat(list(in_chunks(run, len(layers), at_once)))


def _kl_of(
    vlm: VLM,
    last: Float[Tensor, "version d_model"],
    clean: Float[Tensor, "batch d_vocab"],
    rows: Int[Tensor, " version"],
) -> Float[Tensor, " version"]:
    # The divergence of close distributions is a small difference of large sums.
    wide = torch.float32 if last.device.type == "mps" else torch.float64
    parts = []
    for h, row in zip(last.split(ROWS_OF_LOGITS), rows.split(ROWS_OF_LOGITS), strict=True):
        p, q = clean[row][:, None].to(wide), vlm.unembed(h)[:, None].to(wide)
        parts.append(kl(p, q, torch.ones_like(p[..., 0], dtype=torch.bool)))
    return torch.cat(parts).cpu().double()
