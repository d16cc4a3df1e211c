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


class Pace:
    """Says when the next line about long work is due."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES):
        self.seconds, self.last = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether that many seconds passed since the start, or since it last was."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


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
    start, pace = time.monotonic(), Pace()
    for done, item in enumerate(items):
        if done and pace.is_due():
            left = (time.monotonic() - start) / done * (len(items) - done)
            logger.info("%s: %d of %d batches, %.0f s left", what, done, len(items), left)
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
