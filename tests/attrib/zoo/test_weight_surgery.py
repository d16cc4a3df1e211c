"""Depth growth keeps what a model computes; the outlier channel is large and hardly changes it."""

import random

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from attrib.data.scenes import make_scene, render
from attrib.forward.replay import capture
from attrib.forward.residual import residual_writes
from attrib.model.vlm import VLM
from attrib.zoo import BUILDERS, build
from attrib.zoo.evaluate import questions_about
from attrib.zoo.weight_surgery import (
    CHANNEL,
    SIZE,
    _ignore_channel,
    add_outlier_channel,
    grow_depth,
    keep_lower_half,
)

SCENES = [make_scene(seed) for seed in range(4)]
PROMPTS = [prompt for _, _, prompt in questions_about(SCENES, random.Random(0))]
DEPTH = 4


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request):
    """A model with biases and gains as if trained, and what it grows into."""
    small, processor = build(request.param, seed=0, num_layers=DEPTH // 2)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.05 * torch.randn_like(p))
    grown = grow_depth(small, request.param, seed=1)
    return tuple(VLM(model.eval(), processor, request.param) for model in (small, grown))


@torch.no_grad()
def writes_of(vlm):
    picture = render(make_scene(3), 0)[0]
    batch = vlm.encode([picture], ["What color is the star? The answer is:"])
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.logits(batch)
    return writes


def test_growing_doubles_the_depth_and_keeps_everything_else(pair):
    small, grown = pair
    assert grown.num_layers == 2 * small.num_layers == DEPTH
    assert torch.equal(writes_of(small).embed, writes_of(grown).embed)
    h = torch.randn(3, small.d_model)
    assert torch.equal(small.unembed(h), grown.unembed(h))


def test_the_first_grown_layer_writes_half_of_what_its_original_wrote(pair):
    small, grown = (writes_of(vlm) for vlm in pair)
    torch.testing.assert_close(2 * grown.attn[:, 0], small.attn[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(grown.attn[:, 0], small.attn[:, 0])


def test_the_lower_half_computes_the_first_layers_of_the_deep_model(pair):
    _, deep = pair
    lower = VLM(keep_lower_half(deep.model, deep.name, seed=2).eval(), deep.processor)
    assert lower.num_layers == DEPTH // 2
    kept, whole = writes_of(lower), writes_of(deep)
    torch.testing.assert_close(kept.attn, whole.attn[:, : DEPTH // 2])
    torch.testing.assert_close(kept.mlp, whole.mlp[:, : DEPTH // 2])


def test_no_grown_layer_is_idle(pair):
    _, grown = pair
    writes = writes_of(grown)
    sizes = (writes.attn + writes.mlp).norm(dim=-1)[0]
    assert sizes.min() > 0.1 * sizes.max()


def with_channel(states):
    planted = states.clone()
    planted[:, CHANNEL] += SIZE
    return planted


@pytest.mark.parametrize("norm", [nn.LayerNorm(128), LlamaRMSNorm(128)], ids=["layer", "rms"])
@torch.no_grad()
def test_a_norm_ignores_the_channel_of_states_of_equal_scale(norm):
    for p in norm.parameters():
        p.copy_(torch.randn_like(p))
    states = torch.randn(50, 128)
    states[:, CHANNEL] = 0
    states -= states.mean(-1, keepdim=True)
    states[:, CHANNEL] = 0
    states /= states.square().mean(-1, keepdim=True).sqrt()
    before = norm(states)
    disturbed = norm(with_channel(states))
    _ignore_channel(norm, states)
    after = norm(with_channel(states))
    others = [c for c in range(128) if c != CHANNEL]
    torch.testing.assert_close(after[:, others], before[:, others], atol=0.02, rtol=0.02)
    assert (disturbed - before)[:, others].abs().max() > 0.5  # it had to be made up for


@pytest.mark.parametrize("name", BUILDERS)
def test_words_and_visual_tokens_get_the_channel(name):
    model, processor = build(name, seed=0, num_layers=2)
    add_outlier_channel(model, processor, SCENES, PROMPTS)
    vlm = VLM(model.eval(), processor)
    batch = vlm.encode([None], ["What color is the star?"])
    with torch.no_grad(), capture(vlm) as captured:
        vlm.logits(batch)
    channel, rest = captured.embed[0, :, CHANNEL], captured.embed[0, :, CHANNEL + 1 :]
    torch.testing.assert_close(channel, torch.full_like(channel, SIZE), atol=5, rtol=0)
    assert rest.abs().max() < 5
