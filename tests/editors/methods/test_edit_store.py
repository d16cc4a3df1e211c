"""A store of edits: appended, never rewritten, unlearned bit for bit, safe against a cut."""

import pytest
import torch
from conftest import tiny_vlm
from test_router import encoded
from tiny_edits import requests, samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError, SetupError
from editors import FTL, DualEdit
from editors.gating.gates import CosineGate
from editors.methods.edit_store import EditStore


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    quick = {"steps": 1, "batch_size": 2, "d_adapter": 16, "num_heads": 2, "init": "published"}
    made = DualEdit.train(
        tiny_vlm("llava"), samples(2), layers={"text": [1]}, out=tmp_path_factory.mktemp("dual"),
        gate="none", preset="tuned-small", **quick,
    )  # fmt: skip
    return made.with_gate(CosineGate(1, 0.999))


@torch.no_grad()
def test_edits_are_appended_reopened_and_unlearned(editor, tmp_path):
    vlm, path = tiny_vlm("llava"), tmp_path / "edits.store"
    one, _, other, _ = requests()
    batch = encoded(vlm, [one, other, requests()[3]], targets=False)

    def answers(store):
        with store.applied():
            return vlm.logits(batch)

    store = EditStore.open(path, vlm, editor)
    plain = vlm.logits(batch)
    first, size = store.add(one), path.stat().st_size
    before, start = answers(store), path.read_bytes()
    assert not torch.equal(before[0], plain[0]) and torch.equal(before[1:], plain[1:])
    second = store.add(EditRequest(one.source, one.prompt, "red"), "red")
    store.add(other)
    assert path.read_bytes()[:size] == start and store.names == [first, "red", "edit-2"]
    all_three = answers(store)
    assert not torch.equal(all_three[0], before[0])  # the newest of two about one thing
    again = EditStore.open(path, vlm, editor)
    assert again.names == store.names and torch.equal(answers(again), all_three)
    again.remove(second)
    again.remove("edit-2")
    assert torch.equal(answers(again), before)  # as before those two, bit for bit
    assert EditStore.open(path, vlm, editor).names == [first]
    again.remove(first)
    assert torch.equal(answers(again), plain) and len(again) == 0
    assert again.add(other) == "edit-3"  # names are not used twice


def test_a_record_that_was_cut_off_is_dropped_and_what_is_foreign_refused(editor, tmp_path):
    vlm, path = tiny_vlm("llava"), tmp_path / "edits.store"
    store = EditStore.open(path, vlm, editor)
    store.add(requests()[0])
    whole = path.read_bytes()
    store.add(requests()[2])
    path.write_bytes(path.read_bytes()[:-5])
    again = EditStore.open(path, vlm, editor)
    assert again.names == ["edit-0"] and path.read_bytes() == whole
    with pytest.raises(AttribError, match="the store has an edit 'edit-0'"):
        again.add(requests()[2], "edit-0")
    with pytest.raises(AttribError, match="no edit 'x'; its newest are edit-0"):
        again.remove("x")
    path.write_bytes(b"something else\n")
    with pytest.raises(SetupError, match="no store of edits of this model by this editor"):
        EditStore.open(path, vlm, editor)
    with pytest.raises(AttribError, match="dualedit needs a gate"):
        EditStore.open(tmp_path / "x", vlm, editor.with_gate(None))
    with pytest.raises(AttribError, match="ft-l keeps no memory"):
        EditStore.open(tmp_path / "x", vlm, FTL.train(vlm, out=tmp_path / "l", steps=1))
