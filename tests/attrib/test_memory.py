"""Errors that say that memory is short, and those that do not."""

import gc
import weakref

import pytest
import torch
from conftest import picture, tiny_vlm
from logical_devices import logical_devices, split

import attrib
from attrib.analyses.direct_logits import direct_logits
from attrib.analyses.sensitivity import clean_pass
from attrib.analyses.visual_tokens import gradient_times_input
from attrib.errors import is_out_of_memory
from attrib.forward import memory
from attrib.forward.hooks import on_input
from attrib.forward.memory import free_memory
from attrib.forward.suffix import build_suffix

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


@pytest.fixture
def free_bytes(monkeypatch):
    """Sets the memory that every device seems to have."""
    return lambda num: monkeypatch.setattr(memory, "available_bytes", lambda _device: num)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "blip2_opt"])
def test_what_a_pass_of_many_samples_keeps_fits_into_the_free_memory(name, free_bytes, monkeypatch):
    """What a sweep keeps is counted element by element: states, their suffixes, keys and values."""
    monkeypatch.setattr(memory, "CPU_SAMPLES", 10**9)
    monkeypatch.setattr(memory, "POSITIONS", {"cpu": 10**9})
    vlm = tiny_vlm(name)
    batch = vlm.encode([picture(), picture(seed=1)], ["What is red?", "What is blue?"])
    clean = clean_pass(vlm, batch)
    suffix = build_suffix(clean, batch["text"].shape[1] // 2)
    kept = [*clean.hidden.values(), *suffix.hidden.values()]
    kept += [t for kv in suffix.prefix.values() for t in (kv.keys, kv.values)]
    assert suffix.prefix
    each = sum(t.numel() * t.element_size() for t in kept) // batch.size
    counted = []
    for samples in (1, 10, 100):
        free_bytes(samples * each)
        counted.append(memory.samples_at_once(vlm, batch))
        assert counted[-1] * each <= samples * each * memory.SHARE or counted[-1] == 1
    assert counted[-1] >= 10 and counted[-1] >= 9 * counted[1]


def test_a_cpu_runs_few_samples_at_once_and_other_devices_many(free_bytes):
    batch = tiny_vlm("llava").encode([picture()], ["What is red?"])
    free_bytes(2**50)
    assert memory.samples_at_once(tiny_vlm("llava"), batch) == memory.CPU_SAMPLES
    vlm = split(tiny_vlm("llava"))
    with logical_devices():
        many = memory.POSITIONS["other"] // batch["text"].shape[1]
        assert memory.samples_at_once(vlm, batch) == many > 1000
        free_bytes(0)
        assert memory.samples_at_once(vlm, batch) == 1


@pytest.mark.parametrize("name", ["sensitivity", "heatmaps"])
def test_noise_is_uploaded_once_for_all_layers_and_sizes(name):
    vlm = split(tiny_vlm("llava"), "xpu:0", "xpu:0")

    def uploads(**options):
        with logical_devices() as mode:
            batch = vlm.encode([picture(), picture(seed=1)], ["What is red?", "What is blue?"])
            mode.uploads.clear()
            getattr(attrib, name)(vlm, batch, **options)
            return [shape for shape in mode.uploads if shape[-1:] == (vlm.d_model,)]

    more = {"sigmas": (0.5, 1.0, 2.0)} if name == "sensitivity" else {}
    few = {"sigmas": (0.5,)} if name == "sensitivity" else {}
    uploads(layers=[0], **few)  # verifies the suffix of a sweep, on noise of its own
    one, all_layers = uploads(layers=[0], **few), uploads(**more)
    assert len(one) == 1 and all_layers == one
    assert uploads(draws=2, **more) == 2 * one  # and once for each draw


def test_only_the_logits_that_an_analysis_reads_are_made():
    vlm = tiny_vlm("llava")
    asked = [f"What is {'very ' * 12}red?", "What is blue?"]
    batch, other = (vlm.encode([picture(seed=i), picture(seed=i + 1)], asked) for i in (0, 2))
    rows = []
    with on_input(vlm.components.head, lambda h, *_: rows.append(h[..., 0].numel())):
        for analyse in (
            attrib.attention, attrib.heatmaps, attrib.contributions, attrib.sensitivity,
            direct_logits, gradient_times_input, lambda *given: attrib.patching(*given, other),
        ):  # fmt: skip
            analyse(vlm, batch)
            assert rows and max(rows) <= max(64, batch.size) < batch["text"].numel()
            rows.clear()
        vlm.logits(batch)
    assert rows == [batch["text"].numel()]
