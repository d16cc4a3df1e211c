"""Edits of models that are split over devices or offloaded: those of whole models."""

from contextlib import nullcontext

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import TEXT, asked, logits
from logical_devices import logical_devices, offloaded, split
from tiny_edits import samples
from torch.testing import assert_close

from editors import EDITORS

TRAINED = {"steps": 0, "preset": "embedded", "validate_every": 1, "save_every": 1}
ADAPTERS = {**TRAINED, "d_adapter": 16, "num_heads": 2, "layers": {"text": [2], "visual": [0]}}
MADE = {
    "dualedit": ADAPTERS,
    "mend": {**TRAINED, "rank": 4},
    "serac": {**TRAINED, "width": 32, "num_layers": 1, "num_heads": 2,
              "scope_width": 16, "scope_num_layers": 1},
    "ft-l": {"steps": 2},
    "ft-v": {"steps": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Editors of the whole model by name, and their folders; each is made once."""
    made = {}

    def editor(name):
        if name not in made:
            folder, vlm = tmp_path_factory.mktemp(name), tiny_vlm("llava")
            one = EDITORS[name].train(vlm, samples(4), out=folder / "run", **MADE[name])
            one.save(folder / "editor")
            made[name] = one, folder / "editor"
        return made[name]

    return editor


@pytest.mark.parametrize("where", ["disk", "split"])
@pytest.mark.parametrize("name", MADE)
def test_an_edit_is_that_of_the_whole_model(name, where, saved, tmp_path):
    whole, (editor, folder) = tiny_vlm("llava"), saved(name)
    edit = editor.edit(whole, asked())
    vlm = split(whole) if where == "split" else offloaded(whole, "disk", tmp_path)
    with logical_devices() if where == "split" else nullcontext():
        theirs = EDITORS[name].load(folder, vlm).edit(vlm, asked())
        for request in (asked(), asked(3), TEXT):
            changed = logits(vlm, request, theirs).cpu()
            assert_close(changed, logits(whole, request, edit), rtol=1e-6, atol=1e-6)
            plain = logits(vlm, request).cpu()
            assert_close(plain, logits(whole, request), rtol=1e-6, atol=1e-6)
    if name.startswith("ft"):
        assert not torch.equal(logits(whole, asked(), edit), logits(whole, asked()))
