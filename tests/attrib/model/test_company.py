"""Models that read a picture differently beside others read each example as if it were alone."""

from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_vlm
from torch.testing import assert_close

from attrib.data import EditData
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.forced_pass import without_target
from attrib.model.prompt_rewriting import insert_tokens
from attrib.model.vlm import VLM
from attrib.runs.manifest import provenance_of
from tests.architectures.registry import build

IMAGES = [picture(60, 40), None, picture(40, 90, 1)]
PROMPTS = ["What is it?", "nq", "Two words"]
NO_DATA = EditData("scenes-vqa", "test", [])


def with_mean(h):
    """The states of each example, and the mean over the batch."""
    return h + h.mean(0, keepdim=True)


@pytest.fixture(params=["hunyuan_vl", "mixing projector"])
def vlm(request):
    if request.param == "hunyuan_vl":  # whose pictures are numbered over the batch
        yield VLM(*build("hunyuan_vl"))
        return
    plain = tiny_vlm("llava")
    projector = plain.model.model.multi_modal_projector
    handle = projector.register_forward_hook(lambda _m, _args, out: with_mean(out))
    yield VLM(plain.model, plain.processor)
    handle.remove()


@torch.no_grad()
def test_an_example_is_the_same_in_any_batch(vlm):
    def measured(images, prompts):
        """Last logits and states of prompts; of longer ones; with the target removed; texts."""
        batch = vlm.encode(images, prompts)
        with read(vlm, [0]) as hidden:
            plain = vlm.last_logits(batch)
        words = [[40, 41]] * len(prompts)
        longer = insert_tokens(batch, batch["last"].int().argmax(1), words, vlm.pad_id).batch
        answered = vlm.encode(images, prompts, ["red"] * len(prompts))
        passes = plain, vlm.last_logits(longer), vlm.last_logits(without_target(vlm, answered))
        right = vlm.last_logits(vlm.encode(images, prompts, padding_side="right"))
        twice = vlm.generate(batch, 3, num_beams=2, num_return_sequences=2)
        numbers = torch.cat([*passes, right, hidden[0][:, -1]], -1)
        return numbers, list(zip(twice[::2], twice[1::2], strict=True))

    numbers, texts = measured(IMAGES, PROMPTS)
    for row, (image, prompt) in enumerate(zip(IMAGES, PROMPTS, strict=True)):
        own, text = measured([image], [prompt])
        assert_close(own[0], numbers[row], atol=1e-4, rtol=1e-4)
        assert text == texts[row : row + 1]
    batch = vlm.encode(IMAGES, PROMPTS)
    company = vlm.last_logits(replace(batch, alone=()))  # the control
    assert (company - vlm.last_logits(batch))[2].abs().max() > 1e-3
    assert provenance_of(vlm, NO_DATA, {}, 0)["model"]["pictures"] == "alone"
    with pytest.raises(AttribError, match="their inputs alone are unknown here: use encode"):
        vlm.batch(batch.inputs)
    assert vlm.batch(vlm.encode(IMAGES[1:], PROMPTS[1:]).inputs).size == 2  # one picture


def test_other_models_read_a_batch_at_once():
    batch = tiny_vlm("llava").encode(IMAGES, PROMPTS)
    assert not batch.alone and tiny_vlm("llava").batch(batch.inputs).size == 3
    assert "pictures" not in provenance_of(tiny_vlm("llava"), NO_DATA, {}, 0)["model"]


def test_a_model_whose_layers_mix_examples_is_refused():
    plain = tiny_vlm("llava")
    vlm = VLM(plain.model, plain.processor)
    handle = plain.layers[0].register_forward_pre_hook(lambda _m, args: (with_mean(args[0]),))
    with pytest.raises(AttribError, match="use one example per batch"):
        vlm.encode(IMAGES, PROMPTS)
    assert vlm.encode(IMAGES[:2], PROMPTS[:2]).size == 2
    assert provenance_of(vlm, NO_DATA, {}, 0)["model"]["pictures"] == "one example per batch"
    handle.remove()
