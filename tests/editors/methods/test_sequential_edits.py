"""Edits in sequence are one edit: the last values, or the sum of their updates."""

from contextlib import ExitStack

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import assert_restored, logits, state
from tiny_edits import samples

from attrib.errors import AttribError
from editors import EDITORS
from editors.base import SequentialEdit, edit_all
from editors.evaluation.groups import Groups
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.scoring import Scoring
from editors.gating.gated_editor import behind
from editors.gating.gates import CosineGate

STRONG = {
    "ft-l": {"steps": 2},
    "mend": {"steps": 0, "rate": -0.5},
    "ke": {"steps": 0, "max_scale": 50.0},
}  # fmt: skip


@pytest.mark.parametrize("name", STRONG)
def test_edits_in_sequence_are_one_that_does_what_all_of_them_do(name, tmp_path):
    """As many contexts as edits would be as many hooks, or values, in every pass."""
    vlm, some = tiny_vlm("llava"), samples(3)
    before = state(vlm)
    editor = EDITORS[name].train(vlm, samples(4), out=tmp_path, preset="embedded", **STRONG[name])
    made, parts = edit_all(vlm, editor, some, "sequential"), []
    with ExitStack() as stack:
        for sample in some:
            parts.append(editor.edit(vlm, sample.request))
            stack.enter_context(parts[-1].applied(vlm))
    request = some[0].request
    found, wanted = (logits(vlm, request, edit) for edit in (made, SequentialEdit(parts)))
    assert type(made) is type(parts[0])
    if name == "ft-l":  # its steps went on from the weights of the edits before
        assert torch.equal(found, wanted) and made.num_bytes == parts[0].num_bytes
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, logits(vlm, request, parts[-1]), atol=1e-3)
    assert_restored(vlm, before)


@pytest.mark.parametrize("gated", [True, False])
def test_edits_behind_a_gate_are_not_made_in_sequence(gated, tmp_path):
    """Routes leave the weights as they are, from which the next edit would start."""
    vlm, some = tiny_vlm("llava"), samples(2)
    editor = EDITORS["ft-l"].train(vlm, out=tmp_path, preset="embedded", steps=1)
    editor = behind(editor, CosineGate(1, 0.5)) if gated else editor
    reference, groups = ReferenceModel(vlm, ("paper",)), Groups(some, 2, "sequential")
    for make in (
        lambda: edit_all(vlm, editor, some, "sequential"),
        lambda: Scoring.of(editor, reference, ("paper",), groups=groups),
    ):
        if gated:
            with pytest.raises(AttribError, match=r"ft-l keeps its edits apart.*--gate none"):
                make()
        else:
            make()
    assert edit_all(vlm, editor, some, "batch" if gated else "sequential").num_bytes > 0
