import random

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from attrib.data.scenes import make_scene
from attrib.forward.hooks import capture
from attrib.model.vlm import VLM
from attrib.zoo.models import BUILDERS, build
from attrib.zoo.training.outlier_channel import CHANNEL, SIZE, _ignore_channel, add_outlier_channel
from attrib.zoo.training.scores import questions_about

SCENES = [make_scene(seed) for seed in range(4)]
PROMPTS = [prompt for _, _, prompt in questions_about(SCENES, random.Random(0))]


def with_channel(states):
    planted = states.clone()
    planted[:, CHANNEL] += SIZE
    return planted


@pytest.mark.parametrize("norm", [nn.LayerNorm(128), LlamaRMSNorm(128)], ids=["layer", "rms"])
@torch.no_grad()
def test_a_norm_gives_states_of_one_scale_as_before_whatever_the_channel_holds(norm):
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
