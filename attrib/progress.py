"""Progress bars, and sizes and times for people."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0
BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB")
logger = logging.getLogger("attrib")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items; report on standard error, as a bar or as lines, how many are done.

    Args:
        items: the work, item by item.
        what: name of the work, such as "contributions".
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets, tqdm warns and draws a text bar
            from tqdm.auto import tqdm
        yield from tqdm(items, desc=what, unit="batch", leave=False)
        return
    last = start = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last > SECONDS_BETWEEN_LINES:
            left = (now - start) / done * (len(items) - done)
            logger.info("%s: %d of %d batches, %.0f s left", what, done, len(items), left)
            last = now
        yield item
    logger.info("%s: %d batches in %.1f s", what, len(items), time.monotonic() - start)


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
