"""Times as ratios: contestants take turns in one process; what slows one slows the other."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

LOOK_EVERY_SECONDS = 0.0005


@dataclass(frozen=True)
class Timed:
    """One contestant: seconds per round, and its memory at the highest over that before it."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def compare(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, Timed]:
    """Let contestants take turns for some rounds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks = {name: _peak(run, device) for name, run in contestants.items()}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(_seconds(run, device))
    return {name: Timed(tuple(times), peaks[name]) for name, times in seconds.items()}


def ratio(slow: Timed, fast: Timed) -> dict[str, float]:
    """How many times longer `slow` takes: the median, lowest and highest over the rounds."""
    each = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def _seconds(run: Callable[[], object], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak(run: Callable[[], object], device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Watch() as watch:
        run()
    return watch.peak


class _Watch:
    """The resident memory of this process at its highest, over what it was, by looking often."""

    def __enter__(self) -> "_Watch":
        self._before, self.peak, self._on = _resident(), 0, True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()

    def _look(self) -> None:
        while self._on:
            self.peak = max(self.peak, _resident() - self._before)
            time.sleep(LOOK_EVERY_SECONDS)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
