"""Time that a model's device takes."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from attrib.model.vlm import VLM

Done = TypeVar("Done")


def timed(vlm: VLM, do: Callable[[], Done]) -> tuple[Done, float]:
    """What `do` returns, and the milliseconds until the model's device had done it."""
    start = _now(vlm)
    done = do()
    return done, 1000 * (_now(vlm) - start)


def _now(vlm: VLM) -> float:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
    return time.perf_counter()
