"""Edits come back from files as they were, and only where they belong."""

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.errors import SetupError
from editors import IKE, LTE, SERAC, DualEdit, WeightEdit
from editors.gating.gates import CosineGate
from editors.io import load_edit, save_edit

ONE_STEP = {"steps": 1, "batch_size": 2}
QUICK = {"steps": 2, "batch_size": 2, "d_adapter": 16, "num_heads": 2, "preset": "embedded"}


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def editor(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("dual")
    layers = {"text": [1], "visual": [0]}
    trained = DualEdit.train(llava, samples(3), layers=layers, out=out, gate="none", **QUICK)
    return trained.with_gate(CosineGate(0, 0.5))


@torch.no_grad()
def logits(vlm, edit, asked):
    batch = vlm.encode([asked.image], [asked.prompt])
    with edit.applied(vlm):
        return vlm.logits(batch)


def test_several_edits_of_adapters_come_back_bit_for_bit(llava, editor, tmp_path):
    asked = [sample.request for sample in samples(3)]
    edit = editor.merge([editor.edit(llava, request) for request in asked])
    loaded = load_edit(save_edit(edit, tmp_path / "edit", llava, editor), llava, editor)
    assert loaded.num_bytes == edit.num_bytes
    for request in asked:
        assert torch.equal(logits(llava, loaded, request), logits(llava, edit, request))
        assert loaded.memories[0].request.target == "blue thing"


def test_an_edit_of_weights_comes_back_bit_for_bit(llava, tmp_path):
    name, weight = next(iter(llava.model.named_parameters()))
    edit = WeightEdit({name: weight.detach() + 1})
    loaded = load_edit(save_edit(edit, tmp_path / "edit", llava), llava)
    assert torch.equal(loaded.weights[name], edit.weights[name])


def test_another_model_other_adapters_and_other_files_are_refused(llava, editor, tmp_path):
    edit = editor.edit(llava, samples(1)[0].request)
    path = save_edit(edit, tmp_path / "edit", llava, editor)
    with pytest.raises(SetupError, match="an edit of llava, whose weights are not those of"):
        load_edit(path, tiny_vlm("blip2_llama"), editor)
    other = DualEdit.train(
        llava, samples(2), layers={"text": [1]}, out=tmp_path / "o", gate="none", **QUICK
    )
    with pytest.raises(SetupError, match="made with another editor"):
        load_edit(path, llava, other)
    with pytest.raises(SetupError, match="no such file"):
        load_edit(tmp_path / "none", llava, editor)
    (tmp_path / "broken").write_bytes(b"pickle")
    with pytest.raises(SetupError, match="is not a saved edit"):
        load_edit(tmp_path / "broken", llava, editor)


@pytest.mark.parametrize(("kind", "options"), [
    (IKE, {"demonstrations": 2}), (LTE, ONE_STEP), (SERAC, ONE_STEP),
])  # fmt: skip
def test_edits_of_text_and_of_a_second_model_come_back(kind, options, llava, tmp_path):
    editor = kind.train(llava, samples(3), out=tmp_path / "editor", preset="embedded", **options)
    loaded = kind.load(tmp_path / "editor", llava)
    asked = [sample.request for sample in samples(2)]
    for requests in (asked[:1], asked):
        edits = [editor.edit(llava, request) for request in requests]
        edit = edits[0] if len(edits) == 1 else editor.merge(edits)
        again = load_edit(save_edit(edit, tmp_path / "edit", llava, editor), llava, loaded)
        for request in requests:
            assert torch.equal(logits(llava, again, request), logits(llava, edit, request))
    with pytest.raises(SetupError, match="made with another editor"):
        load_edit(tmp_path / "edit", llava)
