"""How much noise on one modality in one layer changes the output (DualEdit, Fig. 2).

    sensitivity = KL(p || p~), in nats, at the last prompt token                         (Fig. 2)

p is the model's next-token distribution; p~ is the one after adding noise N(0, sigma^2) to the
output of layer l at the positions of a modality and running the later layers.

The paper gives neither values nor a unit of sigma (its Fig. 2 calls sigma a noise variance). The
default ranges from noise with hardly any effect to noise as large as the states. Hidden states grow
with depth by an order of magnitude and more, so the unit "std" (of an example's own states over the
perturbed span) compares layers, while "abs" mostly shows that growth. An example's noise is the
same in all layers and, up to scale, for all sigmas. "both" adds the noise of the two modalities.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import gather_positions, read
from attrib.forward.memory import copies_at_once, in_chunks
from attrib.forward.noise import NOISY_SPANS, NoiseDraw, draw_noise, perturbed_positions
from attrib.forward.replay import CleanPass, capture
from attrib.forward.suffix import Suffix, build_suffix
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.devices import on_each_device
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables
from attrib.vocabulary import NoiseModality, Unit

SIGMAS = (0.1, 0.3, 0.5, 0.7, 1.0)
ROWS_OF_LOGITS = 64  # per chunk in float64: a vocabulary is wide


@torch.no_grad()
def sensitivity(
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
    """KL divergence from the clean output, in nats, under noise in one layer at a time.

    Equal, up to rounding, to one forward pass with hooks per layer, sigma and draw; computed from
    the layers and positions that the noise reaches (`attrib.forward.suffix`).

    Args:
        vlm: The model.
        batch: Prompts with their images.
        modality: What is perturbed: "text", "visual" or "both". The beginning-of-sequence token
            belongs to neither.
        sigmas: Sizes of the noise; 0 gives exactly 0.
        unit: "std": sigma is in standard deviations of the example's own states in that layer, over
            the modality's positions and all channels. "abs": sigma is absolute.
        draws: Number of independent draws of noise to average over.
        seed: Seed of the noise, which also depends on the example's id and the modality.
        layers: The layers, in the order of the result; all by default.
        exclude_last: Do not perturb the last prompt token, where the answer is read.
        max_copies: Number of perturbed copies to run at once; fewer if memory runs out.

    Returns:
        Float32; NaN for an example without a token of the modality, or with NaN logits.

    Raises:
        AttribError: An argument is out of range, or no example has a token of the modality.
    """
    chosen = check_arguments(vlm, modality, sigmas, unit, draws, layers, max_copies)
    at = perturbed_positions(batch, modality, exclude_last)
    if not at.any():
        raise AttribError(nothing_to_perturb(modality))
    clean = clean_pass(vlm, batch)
    suffix = build_suffix(clean, int(at.any(0).int().argmax()))
    logits, final = clean.logits, gather_positions(clean.hidden[vlm.num_layers - 1], clean.last)
    del clean  # the suffix holds what is still needed
    nonzero = [j for j, sigma in enumerate(sigmas) if sigma > 0]
    rows = at.any(1).nonzero()[:, 0].cpu()
    values = torch.full((batch.size, vlm.num_layers, len(sigmas)), torch.nan, dtype=torch.float64)
    values[rows] = 0.0
    copies = torch.cartesian_prod(
        torch.tensor(sorted(set(chosen))), torch.tensor(nonzero, dtype=torch.long), rows
    )
    for draw in range(draws if nonzero else 0):
        noise = draw_noise(
            batch, modality, vlm.d_model, suffix.start,
            unit=unit, exclude_last=exclude_last, seed=seed, draw=draw,
        )  # fmt: skip
        divergences = _divergences(suffix, noise, copies, sigmas, final, max_copies)
        layer, sigma, row = copies.T
        values[row, layer, sigma] += divergences / draws
    values[logits.isnan().any(1).cpu()] = torch.nan
    return values[:, chosen].float().to(logits.device)


@torch.no_grad()
def clean_pass(vlm: VLM, batch: Batch) -> CleanPass:
    """Run a batch and keep what a replay from any layer needs."""
    with capture(vlm) as captured, read(vlm) as hidden:
        logits = vlm.last_logits(batch)
    last, real = batch["last"], batch.inputs["attention_mask"].bool()
    return CleanPass(vlm, captured, hidden, logits, last.int().argmax(1), real)


def measure_sensitivity(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    modality: NoiseModality,
    sigmas: Sequence[float],
    unit: Unit,
    draws: int,
    seed: int,
    layers: Sequence[int] | None = None,
    exclude_last: bool = False,
    max_copies: int | None = None,
    function: Callable[..., Tensor] = sensitivity,
) -> Tables:
    """Table "sweep": example, layer, sigma, value (nats), modality; see `sensitivity`.

    Raises:
        AttribError: A sample has no token of the modality.
    """
    if not perturbed_positions(batch, modality, exclude_last).any(1).all():
        raise AttribError(nothing_to_perturb(modality))
    values = function(
        vlm, batch, modality, sigmas, unit, draws, seed,
        layers=layers, exclude_last=exclude_last, max_copies=max_copies,
    )  # fmt: skip
    table = tidy(
        values.cpu().numpy(),
        example=[sample.id for sample in samples],
        layer=range(vlm.num_layers) if layers is None else layers,
        sigma=sigmas,
    )
    return {"sweep": table.assign(modality=modality)}


def check_arguments(
    vlm: VLM,
    modality: str,
    sigmas: Sequence[float],
    unit: str,
    draws: int,
    layers: Iterable[int] | None,
    max_copies: int | None,
) -> list[int]:
    """Check the arguments of a sweep and return its layers.

    Raises:
        AttribError: One is out of range; the message names it and valid values.
    """
    choices = (("modality", modality, NOISY_SPANS), ("unit", unit, get_args(Unit)))
    for name, value, known in choices:
        if value not in known:
            raise AttribError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if not len(sigmas):
        raise AttribError(f"sigmas: expected at least one size of noise, such as {SIGMAS}")
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise AttribError(f"sigmas: expected finite numbers of 0 or more, got {sigma}")
    for name, value in (("draws", draws), ("max_copies", max_copies)):
        if value is not None and value < 1:
            raise AttribError(f"{name}: expected 1 or more, got {value}")
    chosen = list(range(vlm.num_layers) if layers is None else layers)
    known = f"{vlm.name} has layers 0 to {vlm.num_layers - 1}"
    if not chosen:
        raise AttribError(f"layers: none given; {known}")
    for layer in chosen:
        if not 0 <= layer < vlm.num_layers:
            raise AttribError(f"layers: there is no layer {layer}; {known}")
    return chosen


def nothing_to_perturb(modality: str) -> str:
    """Error message if no example has a token of the modality."""
    if modality == "visual":
        return "modality 'visual': no example has an image; give images, or perturb 'text'"
    return f"modality {modality!r}: no example has a token to perturb except the last one"


def _divergences(
    suffix: Suffix,
    noise: NoiseDraw,
    copies: Int[Tensor, "copy three"],
    sigmas: Sequence[float],
    clean: Float[Tensor, "batch d_model"],
    max_copies: int | None,
) -> Float[Tensor, " copy"]:
    """KL from the clean output for each copy (layer, index of its sigma, example), in float64."""
    layers, rows = copies[:, 0].tolist(), on_each_device(copies[:, 2])
    sigma = on_each_device(torch.tensor(sigmas, dtype=torch.float64)[copies[:, 1]].float())
    noise_on = lru_cache(maxsize=None)(noise.to)

    @lru_cache(maxsize=1)
    def scaled(layer: int) -> Tensor:
        h = suffix.hidden[layer]
        return noise_on(h.device).scaled(h)

    def run(chunk: slice) -> Tensor:
        def perturbed(part: slice) -> Tensor:
            here = slice(chunk.start + part.start, chunk.start + part.stop)
            layer = layers[here.start]
            device = suffix.hidden[layer].device
            row = rows(device)[here]
            h = suffix.hidden[layer][row]
            new = h + sigma(device)[here, None, None] * scaled(layer)[row]
            return torch.where(noise_on(device).at[row][..., None], new.to(h.dtype), h)

        last = suffix.run(layers[chunk], rows(clean.device)[chunk], perturbed)
        return _kl_of(suffix.vlm, last, clean.to(last.device), rows(last.device)[chunk])

    return torch.cat(list(in_chunks(run, len(layers), copies_at_once(suffix, max_copies))))


def _kl_of(
    vlm: VLM,
    last: Float[Tensor, "copy d_model"],
    clean: Float[Tensor, "batch d_model"],
    rows: Int[Tensor, " copy"],
) -> Float[Tensor, " copy"]:
    # The divergence of close distributions is a small difference of large sums.
    wide = torch.float32 if last.device.type == "mps" else torch.float64
    parts = []
    for h, row in zip(last.split(ROWS_OF_LOGITS), rows.split(ROWS_OF_LOGITS), strict=True):
        # Both in calls of one size: products with a matrix round differently by size.
        p, q = (vlm.unembed_float32(one)[:, None].to(wide) for one in (clean[row], h))
        parts.append(kl(p, q, torch.ones_like(p[..., 0], dtype=torch.bool)))
    return torch.cat(parts).cpu().double()
