"""Layers and noise levels as they are typed."""

import math
import re
from typing import Any


def parse_layers(given: Any) -> list[int]:
    """Layers from "0,4,8-11" or from a list, in ascending order.

    Raises:
        ValueError: Anything else.
    """
    text = given if isinstance(given, str) else ",".join(map(str, given))
    layers = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise ValueError(f"expected layers such as 0,4,8-11, got {given!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise ValueError(f"expected layers such as 0,4,8-11, got {part.strip()!r}")
        layers += range(first, last + 1)
    return sorted(set(layers))


def parse_sigmas(given: Any, example: str) -> list[float]:
    """Noise levels from "0.1,0.3" or from a list.

    Raises:
        ValueError: Anything else, or a negative number.
    """
    parts = given.split(",") if isinstance(given, str) else given
    try:
        sigmas = [float(part) for part in parts]
    except (TypeError, ValueError):
        sigmas = []
    if not sigmas or not all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise ValueError(f"expected numbers of 0 or more, such as {example}, got {given!r}")
    return sigmas
