"""TransformerLens: activation caches, bridges and architecture adapters for our models.

Importing this package imports TransformerLens, which takes a second, so the rest of `attrib` does
it inside functions. It also registers our adapters, after which

    TransformerBridge.boot_transformers("Salesforce/blip2-opt-2.7b")

works as it does for the models that TransformerLens supports itself.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _restored_logging() -> Iterator[None]:
    """Restore warning filters and the log level of transformers, which imports inside change."""
    log = logging.getLogger("transformers")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)


with _restored_logging():
    from attrib.bridges import adapters

__all__ = ["adapters"]
