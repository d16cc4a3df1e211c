"""Edits in sequence are one edit: the last values, or the sum of their updates."""

from contextlib import ExitStack

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import assert_restored, logits, state
from tiny_edits import samples

from editors import EDITORS
from editors.base import SequentialEdit, edit_all

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
