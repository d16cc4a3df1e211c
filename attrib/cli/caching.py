"""What several steps of one command need, made once: one reading of a model, its answers."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
_kept: ContextVar[dict[str, tuple[Hashable, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def caching() -> Iterator[None]:
    """Inside, `cached` keeps what it makes, the last of each kind; outside, it keeps nothing.

    A command that another one calls shares with that.
    """
    outer = _kept.get()
    token = _kept.set({} if outer is None else outer)
    try:
        yield
    finally:
        _kept.reset(token)


def cached(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` makes; inside `caching()`, what it made when last asked for this kind and key."""
    kept = _kept.get()
    if kept is None:
        return make()
    if kind not in kept or kept[kind][0] != key:
        kept.pop(kind, None)  # before the next one is made: two models may not fit
        kept[kind] = key, make()
    return kept[kind][1]
