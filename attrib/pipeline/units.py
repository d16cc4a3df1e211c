"""Sizes and times for people."""

import math

BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def show_bytes(size: int) -> str:
    """A number of bytes: "13.2 MiB"."""
    power = min(int(math.log(size, 1024)), len(BYTES) - 1) if size >= 1 else 0
    return f"{size / 1024**power:.4g} {BYTES[power]}"


def show_seconds(seconds: float) -> str:
    """A duration: "40 s", "12 min", "3.5 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
