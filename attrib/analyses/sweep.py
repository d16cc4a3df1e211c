"""What a sweep over layers and sigmas may be asked for, and what it costs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from attrib.analyses.cutting import clean_pass, suffix_of
from attrib.analyses.disturbance import SPANS, Modality, disturbed_positions
from attrib.analyses.suffix import Suffix
from attrib.batch import Batch
from attrib.errors import AttribError
from attrib.noise import Unit
from attrib.vlm import VLM

SIGMAS = (0.1, 0.3, 0.5, 0.7, 1.0)
UNITS: tuple[Unit, ...] = ("std", "abs")
# Positions in one pass: enough to keep a device busy, few enough for its memory.
POSITIONS = {"cpu": 2048, "other": 32768}
KEYS_ALONE = 0.25  # of a layer's work: what keys and values take, roughly


@dataclass(frozen=True)
class SweepCost:
    """What a sweep over one batch takes.

    Attributes:
        versions: Disturbed examples to run.
        at_once: How many of them run together.
        share: Of an example's positions, how many are run again.
        forwards: The work, in forward passes over the batch.
        naive: Forward passes over the batch that writing the noise with hooks would take.
        memory: Bytes, the model's weights not counted; an estimate.
    """

    versions: int
    at_once: int
    share: float
    forwards: float
    naive: int
    memory: int


@torch.no_grad()
def sweep_cost(
    vlm: VLM,
    batch: Batch,
    modality: Modality = "text",
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 1,
    *,
    layers: Iterable[int] | None = None,
    spare_last: bool = False,
    max_versions: int | None = None,
) -> SweepCost:
    """What `sensitivity` of these arguments takes, at the price of a forward pass.

    Raises:
        AttribError: As `sensitivity`.
    """
    chosen = set(checked(vlm, modality, sigmas, "std", draws, layers, max_versions))
    at = disturbed_positions(batch, modality, spare_last)
    if not at.any():
        raise AttribError(nothing_to_disturb(modality))
    suffix = suffix_of(clean_pass(vlm, batch), int(at.any(0).int().argmax()))
    share = suffix.num_pos / at.shape[1]
    each = draws * sum(sigma > 0 for sigma in sigmas)
    versions = each * len(chosen) * int(at.any(1).sum())
    passes = each * sum(_layers_run(suffix, layer) for layer in chosen) / vlm.num_layers
    kept = KEYS_ALONE * (1 - share)
    at_once = min(versions, versions_at_once(suffix, max_versions))
    return SweepCost(
        versions=versions,
        at_once=at_once,
        share=share,
        forwards=1 + kept + passes * share * int(at.any(1).sum()) / batch.size,
        naive=1 + each * len(chosen),
        memory=_memory(suffix, at_once),
    )


def versions_at_once(suffix: Suffix, max_versions: int | None) -> int:
    """How many disturbed examples to run together: as many as asked for, or as are of use."""
    kind = "cpu" if suffix.last.device.type == "cpu" else "other"
    return max_versions or max(1, POSITIONS[kind] // suffix.num_pos)


def checked(
    vlm: VLM,
    modality: str,
    sigmas: Sequence[float],
    unit: str,
    draws: int,
    layers: Iterable[int] | None,
    max_versions: int | None,
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
    for name, value in (("draws", draws), ("max_versions", max_versions)):
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


def nothing_to_disturb(modality: str) -> str:
    """What to say where no example has a token of the modality."""
    if modality == "visual":
        return "modality 'visual': no example has an image; give images, or disturb 'text'"
    return f"modality {modality!r}: no example has a token to disturb besides the last one"


def _layers_run(suffix: Suffix, layer: int) -> float:
    """How many layers a version runs that is disturbed in `layer`."""
    later = suffix.vlm.num_layers - 1 - layer
    return float(later) if suffix.query is None or not later else later - 1 + KEYS_ALONE


def _memory(suffix: Suffix, at_once: int) -> int:
    """Clean states and kept keys of all layers, and what running a layer takes at its height."""
    vlm = suffix.vlm
    kept = [t for pair in suffix.kept.values() for t in (pair.keys, pair.values)]
    states = [*suffix.hidden.values(), *kept]
    item = states[0].element_size()
    # A matrix of d_model x width makes `width` numbers of each position.
    width = sum(w.numel() for w in vlm.layers[0].parameters()) // vlm.d_model
    front = sum(t[0].numel() for t in kept) // vlm.num_layers
    each = suffix.num_pos * (2 * vlm.d_model + width) + 2 * front
    noise = 2 * suffix.hidden[0].numel() * 4
    return sum(t.numel() for t in states) * item + noise + at_once * each * item
