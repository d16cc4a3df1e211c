"""Out-of-memory errors: recognise them, free memory, measure what is available."""

import psutil
import torch

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
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
