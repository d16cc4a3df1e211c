"""What a sweep is said to cost, against what is counted while it runs: work and memory."""

from contextlib import ExitStack, contextmanager
from inspect import unwrap

import pytest
import torch
from conftest import examples, tiny_vlm
from torch import nn

from attrib.analyses.cost_plan import sweep_cost
from attrib.analyses.sensitivity import SIGMAS, sensitivity
from attrib.errors import AttribError
from attrib.forward.peak_memory import CountedMemory
from benchmarks.shapes import Shape, random_batch, random_vlm

SMALL = Shape(side=8, text=24, layers=6, width=64, heads=4, vocab=64)
MODALITIES = ("text", "visual")
# Cut; written to between layers; looking ahead.
FAMILIES = ("blip2_opt", "qwen3_vl", "gemma3")


@contextmanager
def counted_work(vlm):
    """A list that holds, at its end, multiplications in the matrices of the decoder layers."""
    work = [0]

    def count(matrix, _inputs, output):
        work[0] += matrix.weight.numel() * output[..., 0].numel()

    with ExitStack() as stack:
        for module in vlm.layers.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(count).remove)
        yield work


def forwards_counted(vlm, batch, modality="text", sigmas=SIGMAS):
    """The work of a sweep in forward passes: the first time for a model, and any later time."""
    vlm.verified.clear()
    counts = []
    for run in (
        lambda: vlm.logits(batch),
        *[lambda: sensitivity(vlm, batch, modality, sigmas)] * 2,
    ):
        with counted_work(vlm) as work, torch.no_grad():
            run()
        counts.append(work[0])
    return counts[1] / counts[0], counts[2] / counts[0]


@pytest.fixture(scope="module")
def long_prompt():
    """A model and a prompt in which a picture has most of the positions, as in LLaVA-1.5."""
    vlm = random_vlm(SMALL, torch.float32, "cpu")
    return vlm, random_batch(vlm, SMALL)


@pytest.mark.parametrize("modality", MODALITIES)
def test_estimated_compute_is_within_a_tenth_of_the_counted(long_prompt, modality):
    vlm, batch = long_prompt
    cost = sweep_cost(vlm, batch, modality)
    first, later = forwards_counted(vlm, batch, modality)
    assert cost.share == pytest.approx(24 / 89 if modality == "text" else 1)
    assert 0.9 < cost.forwards / later < 1.1
    assert 0.9 < (cost.forwards + cost.test) / first < 1.1
    assert first - later > 0.8  # without the test it would have been missed


@pytest.mark.parametrize("name", FAMILIES)
def test_estimates_hold_for_every_family(name):
    vlm = tiny_vlm(name)
    batch = vlm.encode(*examples(), padding_side="left")
    cost = sweep_cost(vlm, batch, sigmas=(0.5, 1.0))
    first, later = forwards_counted(vlm, batch, sigmas=(0.5, 1.0))
    assert 0.8 < cost.forwards / later < 1.25
    assert 0.8 < (cost.forwards + cost.test) / first < 1.25
    assert 2 / 3 < memory_counted(vlm, batch, sigmas=(0.5, 1.0)) < 3 / 2


@pytest.mark.parametrize("modality", MODALITIES)
def test_estimated_memory_is_within_a_half_of_the_counted(long_prompt, modality):
    vlm, batch = long_prompt
    assert 2 / 3 < memory_counted(vlm, batch, modality) < 3 / 2


def test_a_wide_vocabulary_and_many_examples_count():
    shape = Shape(side=4, text=8, layers=2, width=32, heads=2, vocab=4096)
    vlm = random_vlm(shape, torch.float32, "cpu")
    one = random_batch(vlm, shape)
    many = vlm.batch({k: v.repeat(16, *[1] * (v.ndim - 1)) for k, v in one.inputs.items()})
    assert 2 / 3 < memory_counted(vlm, many, at_once=8, sigmas=(1.0,)) < 3 / 2
    assert 2 / 3 < memory_counted(vlm, one, at_once=64) < 3 / 2


def memory_counted(vlm, batch, modality="text", sigmas=SIGMAS, at_once=None):
    """The memory that a sweep is said to take, over what it takes."""
    said = sweep_cost(vlm, batch, modality, sigmas, max_copies=at_once).memory
    vlm.verified.clear()
    with CountedMemory() as counted, torch.no_grad():
        unwrap(sensitivity)(vlm, batch, modality, sigmas, max_copies=at_once)
    return said / counted.peak


def test_copies_are_examples_with_images_times_layers_draws_and_nonzero_sigmas():
    vlm = tiny_vlm("llava")
    images, prompts = examples(4)
    batch = vlm.encode(images, [f"{prompt} {'word ' * 4}" for prompt in prompts])
    cost = sweep_cost(vlm, batch, "visual", (0.0, 0.5, 1.0), draws=2, layers=[0, 3])
    assert cost.copies == 3 * 2 * 2 * 2  # pictures, layers, sigmas above 0, draws
    assert cost.naive == 1 + 2 * 2 * 2
    full = sweep_cost(vlm, batch, "text", SIGMAS)
    assert 1 < full.forwards < full.naive / 2
    with pytest.raises(AttribError, match="draws"):
        sweep_cost(vlm, batch, draws=0)
