"""How far a long computation is: a bar on a terminal, a plain line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0
logger = logging.getLogger("attrib")


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, one by one, while saying on standard error how many are done.

    Args:
        items: what is worked on.
        what: name of the work, such as "contributions".
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, unit="batch", leave=False)
        return
    said = start = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said > SECONDS_BETWEEN_LINES:
            left = (now - start) / done * (len(items) - done)
            logger.info("%s: %d of %d batches, %.0f s left", what, done, len(items), left)
            said = now
        yield item
    logger.info("%s: %d batches in %.1f s", what, len(items), time.monotonic() - start)
