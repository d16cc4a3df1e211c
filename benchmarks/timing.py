"""Times as ratios: contestants take turns in one process; what slows one slows the other."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.memory import CountedMemory


@dataclass(frozen=True)
class Timed:
    """One contestant: seconds per round, and at the height the bytes that it had made."""

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
    with CountedMemory() as counted:
        run()
    return counted.peak
