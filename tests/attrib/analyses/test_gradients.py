"""Gradient times input: the slope of a logit, and a model left as it was."""

import copy

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

import attrib
from attrib.analyses.visual_tokens import gradient_times_input
from attrib.errors import AttribError
from attrib.forward.hooks import gather_positions, position_index, write
from attrib.forward.replay import capture, forward_from
from attrib.model.vlm import VLM


def in_double(name):
    vlm = tiny_vlm(name)
    return VLM(copy.deepcopy(vlm.model).double(), vlm.processor, vlm.name)


@torch.no_grad()
def slope(vlm, batch, layer, row, token, step=1e-2):
    """Of the predicted token's logit, as the input of a layer at one visual token is scaled."""
    last, pos = position_index(batch["last"]), int(batch["visual"][row].nonzero()[token])
    key = int(gather_positions(vlm.logits(batch), last)[row].argmax())
    at = torch.zeros_like(batch["last"])
    at[row, pos] = True
    logits = []
    for sign in (1, -1):
        with write(vlm, layer - 1, lambda h, s=sign: h * (1 + s * step), at):
            logits.append(float(gather_positions(vlm.logits(batch), last)[row, key]))
    return (logits[0] - logits[1]) / (2 * step)


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "gemma3", "paligemma"])
def test_gradient_times_input_is_the_slope_along_the_state(name):
    vlm = in_double(name)
    batch = vlm.encode(*examples())
    values = gradient_times_input(vlm, batch)
    for layer, row, token in ((1, 0, 0), (2, 2, 1), (3, 2, 3)):
        expected = slope(vlm, batch, layer, row, token)
        assert abs(float(values[row, layer, token]) - expected) < 1e-5 + 1e-2 * abs(expected)
    assert values[1].isnan().all() and values[[0, 2]].isfinite().all()


def test_the_first_layers_input_is_the_embedding():
    vlm = in_double("llava")
    batch = vlm.encode(*examples(1))
    with torch.no_grad(), capture(vlm) as captured:
        logits = gather_positions(vlm.logits(batch), position_index(batch["last"]))
    embed, pos = captured.embed, int(batch["visual"][0].nonzero()[2])
    ends = []
    for factor in (1.01, 0.99):
        changed = embed.clone()
        changed[0, pos] *= factor
        with torch.no_grad():
            final = gather_positions(
                forward_from(vlm, captured, -1, changed), position_index(batch["last"])
            )
            ends.append(vlm.unembed(final)[0, logits.argmax()])
    expected = (ends[0] - ends[1]) / 0.02
    assert_close(gradient_times_input(vlm, batch)[0, 0, 2], expected, rtol=1e-2, atol=1e-5)


def test_every_architecture_has_gradients_and_stays_frozen(any_vlm):
    batch = any_vlm.encode(*examples())
    with torch.no_grad():
        values = gradient_times_input(any_vlm, batch)
    there = batch["visual"].sum(1)
    assert values.shape == (3, any_vlm.num_layers, int(there.max()))
    for row, count in enumerate(there.tolist()):
        assert values[row, :, :count].isfinite().all() and values[row, :, count:].isnan().all()
    assert values[2, 1].nan_to_num().abs().max() > 0
    assert not any(weight.requires_grad for weight in any_vlm.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_map_of_rounding_errors_is_zero(dtype):
    vlm = attrib.load("tiny-llava", dtype=dtype, verify=False)
    with torch.no_grad():
        values = gradient_times_input(vlm, vlm.encode([picture()], ["What is red?"]))[0]
    assert not values[-1].any() and values[:-1].any(1).all()


def test_text_alone_is_refused(vlm):
    with pytest.raises(AttribError, match="image"):
        gradient_times_input(vlm, vlm.encode([None], ["Two and two is"]))
