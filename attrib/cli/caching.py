"""A cache for the steps of one command, such as its loaded model."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_kept: ContextVar[dict[str, tuple[Hashable, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def caching() -> Iterator[None]:
    """Inside this context `cached` keeps the last object of each kind; outside, none.

    A command that is called by another one shares its cache.
    """
    outer = _kept.get()
    token = _kept.set({} if outer is None else outer)
    try:
        yield
    finally:
        _kept.reset(token)


def cached(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return `make()`, or inside `caching()` the last object of this kind if it has this key."""
    kept = _kept.get()
    if kept is None:
        return make()
    if kind not in kept or kept[kind][0] != key:
        kept.pop(kind, None)  # before the next one is made: two models may not fit
        kept[kind] = key, make()
    return kept[kind][1]
