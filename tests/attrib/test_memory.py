"""Errors that say that memory is short, and those that do not."""

import gc
import weakref

import pytest
import torch

from attrib.memory import free_memory, is_out_of_memory

SHORT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
OTHERS = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError("the row speaks of a computer that is out of memory"),
)


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_errors_of_every_device_are_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_them(error):
    assert not is_out_of_memory(error)


def test_a_request_that_no_machine_can_meet_is_one():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_what_only_holds_itself_is_given_back():
    class Ring:
        pass

    ring = Ring()
    ring.itself = ring
    left = weakref.ref(ring)
    gc.disable()
    try:
        del ring
        assert left() is not None
        free_memory()
        assert left() is None
    finally:
        gc.enable()
