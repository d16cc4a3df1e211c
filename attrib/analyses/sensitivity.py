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

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.noise import (
    SPANS,
    Modality,
    NoiseDraw,
    Unit,
    draw_noise,
    perturbed_positions,
)
from attrib.forward.suffix import Suffix, build_suffix, clean_pass
from attrib.memory import free_memory, is_out_of_memory
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collect import Tables

SIGMAS = (0.1, 0.3, 0.5, 0.7, 1.0)
UNITS: tuple[Unit, ...] = ("std", "abs")
# Positions in one pass: enough to keep a device busy, few enough for its memory.
POSITIONS = {"cpu": 2048, "other": 32768}


def copies_at_once(suffix: Suffix, max_copies: int | None) -> int:
    """How many disturbed examples to run together: as many as asked for, or as are of use."""
    kind = "cpu" if suffix.last.device.type == "cpu" else "other"
    return max_copies or max(1, POSITIONS[kind] // suffix.num_pos)


def checked(
    vlm: VLM,
    modality: str,
    sigmas: Sequence[float],
    unit: str,
    draws: int,
    layers: Iterable[int] | None,
    max_copies: int | None,
) -> list[int]:
    """The layers as a list, once all arguments of a sweep are found good.

    Raises:
        AttribError: One is not; the message names it and what would work.
    """
    _one_of("modality", modality, SPANS)
    _one_of("unit", unit, UNITS)
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


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in tuple(known):
        raise AttribError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def nothing_to_perturb(modality: str) -> str:
    """What to say where no example has a token of the modality."""
    if modality == "visual":
        return "modality 'visual': no example has an image; give images, or disturb 'text'"
    return f"modality {modality!r}: no example has a token to disturb besides the last one"


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
    exclude_last: bool = False,
    max_copies: int | None = None,
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
        exclude_last: Leave the last prompt token alone, which the answer is read from.
        max_copies: How many disturbed examples to run at once; less where memory runs out.

    Returns:
        In float32; NaN for an example that has no token of the modality, or whose logits are NaN.

    Raises:
        AttribError: An argument is out of range, or no example has a token of the modality.
    """
    chosen = checked(vlm, modality, sigmas, unit, draws, layers, max_copies)
    at = perturbed_positions(batch, modality, exclude_last)
    if not at.any():
        raise AttribError(nothing_to_perturb(modality))
    clean = clean_pass(vlm, batch)
    suffix = build_suffix(clean, int(at.any(0).int().argmax()))
    logits = clean.logits
    del clean  # the suffix holds what is still needed
    loud = [j for j, sigma in enumerate(sigmas) if sigma > 0]
    rows = at.any(1).nonzero()[:, 0].cpu()
    values = torch.full((batch.size, vlm.num_layers, len(sigmas)), torch.nan, dtype=torch.float64)
    values[rows] = 0.0
    copies = torch.cartesian_prod(
        torch.tensor(sorted(set(chosen))), torch.tensor(loud, dtype=torch.long), rows
    )
    for draw in range(draws if loud else 0):
        noise = draw_noise(
            batch, modality, vlm.d_model, suffix.start,
            unit=unit, exclude_last=exclude_last, seed=seed, draw=draw,
        )  # fmt: skip
        moved = _divergences(suffix, noise, copies, sigmas, logits, max_copies)
        layer, sigma, row = copies.T
        values[row, layer, sigma] += moved / draws
    values[logits.isnan().any(1).cpu()] = torch.nan
    return values[:, chosen].float().to(logits.device)


def _divergences(
    suffix: Suffix,
    noise: NoiseDraw,
    copies: Int[Tensor, "version three"],
    sigmas: Sequence[float],
    clean: Float[Tensor, "batch d_vocab"],
    max_copies: int | None,
) -> Float[Tensor, " version"]:
    """KL from the clean output of each version (layer, index of its sigma, example), in float64."""
    device = clean.device
    layers, rows = copies[:, 0].tolist(), copies[:, 2].to(device)
    sigma = torch.tensor(sigmas, dtype=torch.float64)[copies[:, 1]].to(device, torch.float32)
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

    at_once = copies_at_once(suffix, max_copies)
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


logger = logging.getLogger("attrib")


def in_chunks(run: Callable[[slice], Tensor], num: int, size: int) -> Iterator[Tensor]:
    """Results of `run` on slices that cover 0 to `num`, in order, each of at most `size`.

    Where memory runs out, the slice is halved, and the rest goes on with that size. Where not even
    one fits, the error is passed on.
    """
    start = 0
    while start < num:
        length = min(size, num - start)
        done = _attempt(run, slice(start, start + length), final=length == 1)
        if done is None:
            size = (length + 1) // 2
            logger.warning("out of memory: going on with %d disturbed examples at a time", size)
        else:
            yield done
            start += length


def _attempt(run: Callable[[slice], Tensor], chunk: slice, *, final: bool) -> Tensor | None:
    # In a function of its own: the error holds on to the tensors of all frames it came through.
    try:
        return run(chunk)
    except (RuntimeError, MemoryError) as error:
        if final or not is_out_of_memory(error):
            raise
    free_memory()
    return None


def measure_sensitivity(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    modality: Modality,
    sigmas: Sequence[float],
    unit: Unit,
    draws: int,
    seed: int,
    layers: Sequence[int] | None = None,
    exclude_last: bool = False,
    max_copies: int | None = None,
) -> Tables:
    """The table "sweep": example, layer, sigma, value (nats), modality; see `sensitivity`.

    Raises:
        AttribError: A sample has no token of the modality.
    """
    if not perturbed_positions(batch, modality, exclude_last).any(1).all():
        raise AttribError(nothing_to_perturb(modality))
    values = sensitivity(
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
