"""FT-V and FT-L: their loss falls, what they do not train stays, and the model comes back."""

import pytest
import torch
from conftest import FAMILIES, tiny_vlm
from inner_edits import BOTH, TEXT, asked, assert_restored, logits, loss, state
from torch import nn

from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors.io import load_edit, save_edit
from editors.methods.finetune import FTL, FTV
from editors.weights.components import mlp_of, visual_parameters


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("editor", [FTV, FTL])
def test_the_loss_falls_and_the_model_comes_back_bit_for_bit(name, editor, tmp_path):
    vlm = tiny_vlm(name)
    before, plain = state(vlm), loss(vlm, asked())
    edit = editor.train(vlm, out=tmp_path, learning_rate=0.01).edit(vlm, asked())
    assert_restored(vlm, before)
    assert loss(vlm, asked(), edit) < 0.95 * plain
    with pytest.raises(RuntimeError, match="inside"), edit.applied(vlm):
        raise RuntimeError("inside")
    assert_restored(vlm, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_alone_passes_ft_v_to_the_last_bit(name, tmp_path):
    vlm = tiny_vlm(name)
    edit = FTV.train(vlm, out=tmp_path, steps=3).edit(vlm, asked())
    assert torch.equal(logits(vlm, TEXT, edit), logits(vlm, TEXT))
    assert not torch.equal(logits(vlm, asked(5), edit), logits(vlm, asked(5)))


def test_steps_are_those_of_adamw_on_the_whole_model(tmp_path):
    vlm = tiny_vlm("llava")
    edit = FTL.train(vlm, out=tmp_path, steps=3, weight_decay=0.1, learning_rate=1e-3).edit(
        vlm, asked()
    )
    ((name, fitted),) = edit.weights.items()
    weight = dict(vlm.model.named_parameters())[name]
    before = weight.detach().clone()
    batch = vlm.encode([asked().image], [asked().prompt], [asked().target])
    at = batch.labels != -100
    optimizer = torch.optim.AdamW([weight.requires_grad_()], lr=1e-3, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(vlm.logits(batch)[at], batch.labels[at]).backward()
        optimizer.step()
    brute = weight.detach().clone()
    weight.requires_grad_(False).copy_(before)
    weight.grad = None
    torch.testing.assert_close(fitted, brute, rtol=0, atol=1e-6)
    assert (brute - before).abs().max() > 1e-3


def test_no_step_is_taken_once_the_loss_is_small(tmp_path):
    vlm = tiny_vlm("llava")
    editor = FTL.train(vlm, out=tmp_path, stop_below=1e3)
    assert not editor.edit(vlm, asked()).weights
    assert FTL.train(vlm, out=tmp_path).edit(vlm, asked()).weights


def test_what_is_trained_is_found_by_structure(any_vlm):
    assert visual_parameters(any_vlm, "connector")
    found = mlp_of(any_vlm, any_vlm.num_layers - 1)
    assert found.down.shape == found.up.shape[::-1]
    assert found.gate is None or "gate" in found.gate.name
    assert f"layers.{any_vlm.num_layers - 1}." in found.down.name


def test_what_is_named_is_trained(tmp_path):
    blip2 = tiny_vlm("blip2_opt")
    for part, start in (("connector", "qformer."), ("projection", "language_projection."),
                        ("vision_tower", "vision_model.")):  # fmt: skip
        edit = FTV.train(blip2, out=tmp_path, steps=1, part=part).edit(blip2, asked())
        assert edit.weights
        assert all(name.startswith(start) for name in edit.weights)
    both = FTL.train(blip2, out=tmp_path, preset="ft-l-vlkeb", layers=[1, 2]).edit(blip2, asked())
    assert sorted(both.weights) == [
        f"language_model.model.decoder.layers.{i}.{fc}.weight"
        for i in (1, 2)
        for fc in ("fc1", "fc2")
    ]


def test_half_precision_is_trained_in_single(tmp_path):
    vlm = tiny_vlm("llava")
    half = VLM(type(vlm.model)(vlm.model.config).to(torch.bfloat16), vlm.processor, "half")
    edit = FTL.train(half, out=tmp_path, learning_rate=0.01).edit(half, asked())
    assert all(value.dtype == torch.bfloat16 for value in edit.weights.values())
    assert loss(half, asked(), edit) < 0.9 * loss(half, asked())


def test_the_second_edit_goes_inside_the_first(tmp_path):
    vlm = tiny_vlm("llava")
    editor, other = FTL.train(vlm, out=tmp_path, learning_rate=0.01), asked(3, "green")
    first = editor.edit(vlm, asked())
    with pytest.raises(AttribError, match=r"2 edits of ft-l .* inside first.applied\(vlm\)"):
        editor.merge([first, first])
    assert editor.merge([first]) is first
    with first.applied(vlm):
        second = editor.edit(vlm, other)
        assert loss(vlm, other, second) < 0.7 * loss(vlm, other)
    assert not torch.equal(*(next(iter(edit.weights.values())) for edit in (first, second)))


@pytest.mark.parametrize("editor", [FTV, FTL])
def test_what_is_saved_is_what_is_loaded(editor, tmp_path):
    vlm = tiny_vlm("llava")
    made = editor.train(vlm, out=tmp_path / "e", steps=2)
    loaded = editor.load(tmp_path / "e", vlm)
    assert (loaded.config, list(loaded.layers)) == (made.config, list(made.layers))
    edit = loaded.edit(vlm, asked())
    again = load_edit(save_edit(edit, tmp_path / "edit", vlm, loaded), vlm, loaded)
    assert torch.equal(logits(vlm, asked(), again), logits(vlm, asked(), made.edit(vlm, asked())))
    with pytest.raises(SetupError, match="whose weights are not those of"):
        editor.load(tmp_path / "e", tiny_vlm("blip2_opt"))


def test_what_cannot_be_is_refused_with_what_would_work(tmp_path):
    vlm = tiny_vlm("llava")
    bare = VLM(type(vlm.model)(vlm.model.config), vlm.processor, "bare")
    bare.model.model.multi_modal_projector = nn.Identity()
    with pytest.raises(SetupError, match=r"bare has no projector or Q-Former .* ft-l"):
        FTV.train(bare, out=tmp_path)
    for changes, said in (
        ({"speed": 3}, "no setting 'speed'; there are end_token, learning_rate, matrices"),
        ({"part": "eye"}, "part: no 'eye'; expected 'connector', 'projection' or 'vision_tower'"),
        ({"steps": "many"}, "steps: no 'many'; expected a valid integer"),
        ({"preset": "fast"}, "no preset 'fast'; there are auto, ft-v-liveedit, ft-v-vlkeb, tuned"),
        ({"gate": "learned"}, "ft-v is trained without a gate and takes no gate"),
        ({"layers": {"text": [1]}}, "in front of the model's layers"),
    ):
        with pytest.raises(AttribError, match=said):
            FTV.train(vlm, out=tmp_path, **changes)
    with pytest.raises(AttribError, match="there is no layer 9"):
        FTL.train(vlm, out=tmp_path, layers=[9])
    with pytest.raises(AttribError, match="the request has no image"):
        FTV.train(vlm, out=tmp_path).edit(vlm, TEXT)
