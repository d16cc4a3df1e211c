"""TransformerLens: its cache from our captures, our models as its bridges, and adapters for both.

Importing this package imports TransformerLens, which takes a second, so the rest of `attrib` does
it inside functions; and it makes our adapters known, so that afterwards

    TransformerBridge.boot_transformers("Salesforce/blip2-opt-2.7b")

works as for the models that TransformerLens knows itself.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what the imports inside do to warning filters and to the log level of transformers."""
    log = logging.getLogger("transformers")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)


with _undisturbed():
    from attrib.bridges import adapters

__all__ = ["adapters"]
