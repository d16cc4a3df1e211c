"""Signals during a training: a step is finished, and a checkpoint written, before it stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def finish_step_on_signals() -> Iterator[list[int]]:
    """Yield the signals that arrive, of Ctrl-C and SIGTERM; they no longer interrupt a step."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def keep(number: int, _frame: object) -> None:
        received.append(number)

    before = {one: signal.signal(one, keep) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
