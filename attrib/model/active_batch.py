"""Which batch a model is running: what a context inside the pass needs to know of its positions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from attrib.model.batch import Batch

_RUNNING: WeakKeyDictionary[Any, list[Batch]] = WeakKeyDictionary()


@contextmanager
def running(vlm: Any, batch: Batch) -> Iterator[None]:
    """Passes of `vlm` inside the context are over `batch`."""
    stack = _RUNNING.setdefault(vlm, [])
    stack.append(batch)
    try:
        yield
    finally:
        stack.pop()


def running_batch(vlm: Any) -> Batch | None:
    """The batch that `vlm` is running; None outside of `vlm.logits` and `vlm.generate`."""
    stack = _RUNNING.get(vlm)
    return stack[-1] if stack else None
