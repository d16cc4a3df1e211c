"""What a sweep over layers and sigmas may be asked for, and how much of it runs at once."""

import math
from collections.abc import Iterable, Sequence

from attrib.errors import AttribError
from attrib.forward.disturbance import SPANS
from attrib.forward.noise import Unit
from attrib.forward.suffix import Suffix
from attrib.model.vlm import VLM

SIGMAS = (0.1, 0.3, 0.5, 0.7, 1.0)
UNITS: tuple[Unit, ...] = ("std", "abs")
# Positions in one pass: enough to keep a device busy, few enough for its memory.
POSITIONS = {"cpu": 2048, "other": 32768}


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
