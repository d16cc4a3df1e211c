"""Progress of long computations: a bar on a terminal or in a notebook, lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0
logger = logging.getLogger("attrib")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items and report on standard error how many are done.

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
