"""Several pictures in one prompt: whose visual tokens are whose, and what is refused."""

import jaxtyping
import numpy as np
import pytest
import tiny_models
import torch
from conftest import picture, tiny_vlm
from torch.testing import assert_close

from attrib.errors import AttribError
from attrib.forward.noise import base_noise
from attrib.forward.replay import capture
from attrib.model.vlm import VLM

SEVERAL = [name for name in tiny_models.BUILDERS if "blip" not in name]
ONE = [name for name in tiny_models.BUILDERS if "blip" in name]
A, B, C = picture(60, 40), picture(112, 56, 1), picture(40, 90, 2)
IMAGES = [[A, B], None, C, [B, B, A], []]
PROMPTS = ["What is it?", "nq", "Two very long words", "a", "b"]


def embedded(vlm, images, **settings):
    """A batch and the states of its positions before the first layer."""
    batch = vlm.encode(images, PROMPTS, **settings)
    with torch.no_grad(), capture(vlm) as captured:
        last = vlm.last_logits(batch)
    return batch, captured.embed, last


@pytest.mark.parametrize("name", SEVERAL)
def test_each_picture_has_the_tokens_that_see_it(name):
    vlm = tiny_vlm(name)
    batch, before, last = embedded(vlm, IMAGES, padding_side="left")
    assert [len(own) for own in batch.pictures] == [2, 0, 1, 3, 0]
    each = torch.stack([batch.picture(number) for number in range(3)])
    assert torch.equal(each.sum(0), batch["visual"].long())  # a partition
    for row, own in enumerate(batch.pictures):
        firsts = [int(at[row].int().argmax()) for at in each[: len(own)]]
        assert firsts == sorted(firsts)
        for one in own:
            assert one.tokens.start <= one.grid.first
            assert one.grid.first + one.grid.rows * one.grid.cols <= one.tokens.stop
    changed = [[A, picture(112, 56, 7)], None, C, [picture(112, 56, 8), B, A], []]
    _, after, _ = embedded(vlm, changed, padding_side="left")
    moved = (after != before).any(-1)
    for row, number in ((0, 1), (3, 0)):
        place, at = batch.pictures[row][number].grid, each[number, row]
        assert not (moved[row] & ~at).any()
        cells = slice(place.first, place.first + place.rows * place.cols)
        assert moved[row][batch["visual"][row]][cells].all()  # the others may end rows of cells
    assert not moved[[1, 2, 4]].any()
    right, _, same = embedded(vlm, IMAGES, padding_side="right")
    assert right.grids == batch.grids and right.grids[1] is None
    assert_close(same, last, atol=1e-5, rtol=0)
    alone = vlm.encode(IMAGES[:1], PROMPTS[:1])
    with torch.no_grad():
        assert_close(vlm.last_logits(alone)[0], last[0], atol=1e-5, rtol=0)


def test_a_list_of_one_picture_is_that_picture(vlm):
    batch, plain = (vlm.encode([image], ["x"]) for image in ([A], A))
    assert torch.equal(batch.inputs["pixel_values"], plain.inputs["pixel_values"])
    assert batch.grids == plain.grids and batch.pictures == plain.pictures


def test_pictures_precede_the_text_in_the_chat_template_too():
    vlm = tiny_vlm("smolvlm")
    batch = vlm.encode([[A, B]], ["Hi"], template="chat")
    raw = vlm.encode([[A, B]], ["Hi"])
    assert [own.tokens for own in batch.pictures[0]] == [own.tokens for own in raw.pictures[0]]
    assert batch["visual"][0].nonzero().max() < batch["last"][0].nonzero().max()


def test_noise_on_visual_tokens_reaches_every_picture():
    batch = tiny_vlm("llava").encode(IMAGES, PROMPTS)
    noisy = (base_noise(batch, "visual", 8, seed=0) != 0).any(-1)
    assert all(noisy[batch.picture(number)].all() for number in range(3))
    assert torch.equal(noisy, batch["visual"])


@pytest.mark.parametrize("name", ONE)
def test_processors_that_take_one_picture_say_so(name):
    why = "takes one per prompt: it inserts 6 visual tokens, however many images there are"
    with pytest.raises(AttribError, match=f"prompt 1 has 2 images, and .*Processor {why}"):
        tiny_vlm(name).encode([A, [A, B]], ["a", "b"])


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        ([A, B], ["x"], r"2 images for 1 prompts: .*encode\(\[\[a, b\]\], \[prompt\]\)"),
        (A, ["x"], r"images is a Image; .* such as encode\(\[image\], \[prompt\]\)"),
        ([A], "x", r"prompts is a text; .* such as encode\(\[image\], \[prompt\]\)"),
        ([None, [A, b"b.png"]], ["x", "y"], r"image 1\[1\] is a bytes; expected a PIL image"),
        ([None, [A, "b.png"]], ["x", "y"], r"image 1\[1\]: 'b.png': no such file"),
        ([[A, picture(1, 300)]], ["x"], r"image 0\[1\]: 1 x 300 pixels"),
        ([np.zeros((8, 4, 4, 3))], ["x"], r"image 0 is a video \(ndarray of shape \(8, 4, 4, 3\)"),
    ],
)
def test_what_would_work_is_said(monkeypatch, images, prompts, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as in users' runs
    with pytest.raises(AttribError, match=message):
        tiny_vlm("llava").encode(images, prompts)


def test_pictures_that_were_processed_elsewhere_are_unknown():
    vlm = tiny_vlm("llava")
    batch = vlm.batch(vlm.encode([[A, B]], ["x"]).inputs)
    assert batch.pictures == ((),) and batch.grids == (None,)
    with pytest.raises(AttribError, match="unknown here: use encode"):
        batch.picture(0)
    assert not vlm.batch(vlm.encode([None], ["x"]).inputs).picture(0).any()


@torch.no_grad()
def test_the_tokens_of_a_video_are_visual():
    """A video of one frame, shown to a model whose tower reads both alike."""
    vlm = VLM(tiny_vlm("qwen2_vl").model)
    shown = tiny_vlm("qwen2_vl").encode([A], ["What is it?"])
    inputs = dict(shown.inputs)
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
    ids = inputs["input_ids"]
    inputs["input_ids"] = ids.where(ids != tiny_models.IMAGE, tiny_models.VIDEO)
    inputs["mm_token_type_ids"] = 2 * inputs["mm_token_type_ids"]
    video = vlm.batch(inputs)
    assert all(torch.equal(video[span], shown[span]) for span in ("visual", "text", "last"))
    assert_close(vlm.last_logits(video), vlm.last_logits(shown), atol=1e-5, rtol=0)


def test_a_path_is_the_picture_in_the_file(tmp_path):
    vlm, file = tiny_vlm("llava"), tmp_path / "a.png"
    A.save(file)
    (pixels, text, path) = (
        vlm.encode([given], ["What is it?"]).inputs["pixel_values"]
        for given in (A, str(file), [file])
    )
    assert torch.equal(pixels, text) and torch.equal(pixels, path)
