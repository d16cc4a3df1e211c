"""What the benchmarks share: times as ratios, memory of tensors, and files of results.

Contestants take turns in one process, so that whatever slows one down slows the others too.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from attrib.files import versions
from attrib.forward.peak_memory import peak_bytes

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timed:
    """One contestant: seconds per round, and the peak of the bytes that it allocated."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def compare(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, Timed]:
    """Time contestants in turns for some rounds, after a warm-up round that measures memory."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    peaks = {name: peak_bytes(run, device) for name, run in contestants.items()}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = clock(device)
            run()
            seconds[name].append(clock(device) - began)
    return {name: Timed(tuple(times), peaks[name]) for name, times in seconds.items()}


def ratio(slow: Timed, fast: Timed) -> dict[str, float]:
    """How many times longer `slow` takes: the median, lowest and highest over the rounds."""
    each = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times longer `slow` takes: of the fastest rounds, and the range over rounds."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"best": min(slow) / min(fast), "low": min(each), "high": max(each)}


def clock(device: str | torch.device) -> float:
    """Seconds on a clock, after the device has finished its queue."""
    if is_gpu(device):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def is_gpu(device: str | torch.device) -> bool:
    """Whether a device is a CUDA GPU."""
    return torch.device(device).type == "cuda"


def device_name(device: str) -> str:
    """The model of a GPU, or the device as it was given."""
    return torch.cuda.get_device_name(device) if is_gpu(device) else device


def reset_peak(device: str | torch.device) -> None:
    """Start the measurement of `peak_mib`."""
    if is_gpu(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: str | torch.device) -> float | None:
    """Peak memory of a GPU since the last `reset_peak` or `peak_bytes`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if is_gpu(device) else None


def save(path: Path, head: Mapping[str, Any], tables: Mapping[str, Sequence[Any]]) -> None:
    """Write tables with the conditions that they were measured under as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"date": date.today().isoformat(), **head, "versions": versions(), **tables}
    path.write_text(json.dumps(document, indent=1) + "\n")
