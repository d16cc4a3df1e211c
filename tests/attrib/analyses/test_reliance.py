"""Reliance of an answer's tokens on the picture and on the words: what hooks would give."""

import pytest
import torch
from conftest import picture, tiny_vlm

import attrib
from attrib.errors import AttribError
from attrib.explorer import deep
from attrib.forward.hooks import read, write
from attrib.forward.noise import base_noise
from attrib.metrics import kl
from attrib.model.continuation import continued


def by_hooks(vlm, batch, answer, number, span, seed, draws):
    """Noise written into the first layer's output, with the earlier tokens as a target."""
    asked = continued(vlm, batch, answer[:number])
    with read(vlm, [0]) as hidden:
        clean = vlm.logits(asked).double()
    at = torch.zeros_like(asked["last"])
    at[0, -1] = True
    total = 0.0
    for draw in range(draws):
        noise = base_noise(asked, span, vlm.d_model, seed=seed, draw=draw)
        noise *= hidden[0][0, asked[span][0]].std()
        with write(vlm, 0, lambda h, by=noise: h + by, asked[span]):
            total += kl(clean, vlm.logits(asked).double(), at).item() / draws
    return total


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "blip2_opt"])
def test_each_token_has_the_divergence_that_hooks_give(name):
    vlm = tiny_vlm(name)
    batch = vlm.encode([picture(60, 40, seed=1)], ["What is on it"]).named(["one"])
    answer = [11, 7, 5]
    found = attrib.reliance(vlm, batch, answer, draws=2, seed=3)
    for number in range(3):
        for span, values in (("visual", found.visual), ("text", found.text)):
            expected = by_hooks(vlm, batch, answer, number, span, seed=3, draws=2)
            assert values[number].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    torch.testing.assert_close(found.share, found.visual / (found.visual + found.text))
    frame = found.to_frame()
    assert list(frame.columns) == ["token", "visual", "text", "share"] and len(frame) == 3


def test_a_trained_model_needs_picture_and_words_and_without_noise_nothing_moves():
    vlm = attrib.load("tiny-llava", verify=False)
    prompt = "What color is the star? The answer is:"
    batch = vlm.encode([attrib.data.sample_image()], [prompt])
    found, still = attrib.reliance(vlm, batch), attrib.reliance(vlm, batch, sigma=0.0)
    assert found.tokens == ("blue",) and found.visual[0] > 1 and found.text[0] > 1
    assert 0.2 < found.share[0] < 0.95
    assert still.visual[0] == still.text[0] == 0 and still.share.isnan().all()


def test_without_a_picture_there_is_nothing_to_compare():
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match="no picture"):
        attrib.reliance(vlm, vlm.encode([None], ["What is it?"]))
    one = vlm.encode([picture(30, 30, seed=0)], ["one"])
    with pytest.raises(AttribError, match="the answer is empty"):
        attrib.reliance(vlm, one, [])
    two = vlm.encode([picture(30, 30, seed=0)] * 2, ["one", "two"])
    with pytest.raises(AttribError, match="2 prompts"):
        attrib.reliance(vlm, two, [3])


def test_the_page_says_where_noise_changes_nothing():
    assert "Neither" in deep._relies(0.0, 0.0, float("nan"))
    assert "75\u00a0%" in deep._relies(3.0, 1.0, 0.75)
