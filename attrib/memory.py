"""Memory that does not suffice: how to tell it from a mistake, and how to get some of it back."""

import psutil
import torch

# What devices say whose error is a RuntimeError like any other; compared in lower case.
SHORT = (
    "out of memory",  # CUDA, ROCm, XPU, MPS
    "can't allocate memory",  # a CPU
    "not enough memory",  # a CPU under Windows
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in SHORT)


def free_memory() -> None:
    """Give back what a failed attempt left behind: before a smaller one, not as a habit."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device; that of the machine for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
