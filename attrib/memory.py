"""Out-of-memory errors: recognise them, free memory, measure what is available."""

import logging
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor

logger = logging.getLogger("attrib")

# Messages of devices that raise a plain RuntimeError; compared in lower case.
SHORT = (
    "out of memory",  # CUDA, ROCm, XPU, MPS
    "can't allocate memory",  # a CPU
    "not enough memory",  # a CPU under Windows
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in SHORT)


def free_memory() -> None:
    """Free what a failed attempt left behind, before a smaller one."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device; of the machine for the CPU."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def in_chunks(run: Callable[[slice], Tensor], num: int, size: int) -> Iterator[Tensor]:
    """Yield `run(slice)` for slices of at most `size` that cover 0 to `num`, in order.

    If memory runs out, the slice is halved and later slices have that size. If a slice of one does
    not fit, the error is raised.
    """
    start = 0
    while start < num:
        length = min(size, num - start)
        result = _attempt(run, slice(start, start + length), final=length == 1)
        if result is None:
            size = (length + 1) // 2
            logger.warning("out of memory: continuing with %d rows at a time", size)
        else:
            yield result
            start += length


def _attempt(run: Callable[[slice], Tensor], chunk: slice, *, final: bool) -> Tensor | None:
    # A function of its own, because the error keeps the tensors of all its frames alive.
    try:
        return run(chunk)
    except (RuntimeError, MemoryError) as error:
        if final or not is_out_of_memory(error):
            raise
    free_memory()
    return None
