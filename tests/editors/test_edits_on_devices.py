"""Edits of models that are split over devices or offloaded: those of whole models."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import tiny_vlm
from inner_edits import TEXT, asked, logits
from logical_devices import logical_devices, offloaded, split
from tiny_edits import samples
from torch.testing import assert_close

from attrib.model.vlm import VLM
from editors import EDITORS
from editors.gating.threshold import gate_scores
from editors.gating.training import GateTraining, fit_cosine_gate, train_gate
from editors.io import load_edit, save_edit

TRAINED = {"steps": 0, "preset": "embedded", "validate_every": 1, "save_every": 1}
ADAPTERS = {**TRAINED, "d_adapter": 16, "num_heads": 2, "layers": {"text": [2], "visual": [0]}}
MADE = {
    "dualedit": ADAPTERS,
    "mend": {**TRAINED, "rank": 4},
    "serac": {**TRAINED, "width": 32, "num_layers": 1, "num_heads": 2,
              "scope_width": 16, "scope_num_layers": 1},
    "visedit": {**TRAINED, "d_adapter": 16, "num_heads": 2, "layers": {"visual": [0]}},
    "ke": {**TRAINED, "d_lstm": 8, "d_condition": 16, "d_head": 16},
    "lte": {**TRAINED, "rank": 4, "template": "Fact: {fact}\nQ: "},
    "lte, all": {**TRAINED, "parameters": "all", "template": "Fact: {fact}\nQ: "},
    "ike": {"demonstrations": 1},
    "tp": {"steps": 3, "num_memories": 20, "preset": "embedded"},
    "ft-l": {"steps": 2},
    "ft-v": {"steps": 2},
}  # fmt: skip


# No float64 there. To generate, as KE does, transformers asks the real device for its memory.
DEVICES = ("mps:0", "mps:1"), ("xpu:0", "xpu:1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Editors of the whole model by name, and their folders; each is made once."""
    made = {}

    def editor(name):
        if name not in made:
            folder, vlm = tmp_path_factory.mktemp(name), tiny_vlm("llava")
            one = EDITORS[name.split(",")[0]].train(
                vlm, samples(4), out=folder / "run", **MADE[name]
            )
            one.save(folder / "editor")
            made[name] = one, folder / "editor"
        return made[name]

    return editor


@pytest.mark.parametrize("where", ["disk", "split"])
@pytest.mark.parametrize("name", MADE)
def test_an_edit_is_that_of_the_whole_model(name, where, saved, tmp_path):
    whole, (editor, folder) = tiny_vlm("llava"), saved(name)
    edit = editor.edit(whole, asked())
    vlm = (
        split(whole, *DEVICES[name == "ke"])
        if where == "split"
        else offloaded(whole, "disk", tmp_path)
    )
    with logical_devices() if where == "split" else nullcontext():
        loaded = EDITORS[name.split(",")[0]].load(folder, vlm)
        theirs = loaded.edit(vlm, asked())
        saved_edit = save_edit(theirs, tmp_path / "edit.safetensors", vlm, loaded)
        again = load_edit(saved_edit, vlm, loaded)
        assert torch.equal(logits(vlm, asked(), again), logits(vlm, asked(), theirs))
        for request in (asked(), asked(3), TEXT):
            changed = logits(vlm, request, theirs).cpu()
            assert_close(changed, logits(whole, request, edit), rtol=1e-6, atol=1e-6)
            plain = logits(vlm, request).cpu()
            assert_close(plain, logits(whole, request), rtol=1e-6, atol=1e-6)
    if name.startswith("ft"):
        assert not torch.equal(logits(whole, asked(), edit), logits(whole, asked()))


@pytest.mark.parametrize("name", ["dualedit", "mend"])
def test_training_is_that_of_the_whole_model(name, tmp_path):
    whole, how = tiny_vlm("llava"), {**MADE[name], "steps": 1, "gate": "none"}

    def trained(vlm, folder):
        editor = EDITORS[name].train(vlm, samples(2), out=tmp_path / folder, **how)
        curve = [row["loss"] for row in editor.trained["curve"]]
        return logits(vlm, asked(), editor.edit(vlm, asked())).cpu(), curve

    theirs, losses = trained(whole, "whole")
    assert losses[0] != losses[1]
    for where in ("disk", "split"):
        other = split(whole) if where == "split" else offloaded(whole, "disk", tmp_path / "weights")
        with logical_devices() if where == "split" else nullcontext():
            found, curve = trained(other, where)
        assert_close(found, theirs, rtol=1e-6, atol=1e-6)
        assert curve == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "learned"])
def test_a_gate_decides_as_on_the_whole_model(kind, tmp_path):
    def decided(vlm):
        settings = GateTraining(steps=1, batch_size=4, width=8)
        gate = (
            fit_cosine_gate(vlm, samples(4), 0) if kind == "cosine"
            else train_gate(vlm, samples(4), [0, vlm.num_layers - 1], settings)
        )  # fmt: skip
        return gate_scores(vlm, samples(4), gate)["value"].to_numpy(), gate.threshold

    whole = decided(tiny_vlm("llava"))
    for vlm in (offloaded(tiny_vlm("llava"), "disk", tmp_path), split(tiny_vlm("llava"))):
        with logical_devices() if vlm.model.device.type != "meta" else nullcontext():
            found = decided(vlm)
        for mine, theirs in zip(found, whole, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("dualedit", torch.float16),
        ("mend", torch.bfloat16),
        ("tp", torch.bfloat16),
        ("lte", torch.float16),
    ],
)
def test_an_edit_of_an_offloaded_model_in_half_precision(name, dtype, tmp_path):
    whole = tiny_vlm("llava")
    half = VLM(copy.deepcopy(whole.model).to(dtype), whole.processor, whole.name)
    editor = EDITORS[name].train(half, samples(4), out=tmp_path / "run", **MADE[name])
    editor.save(tmp_path / "editor")
    vlm = offloaded(half, "disk", tmp_path / "weights")
    theirs = EDITORS[name].load(tmp_path / "editor", vlm).edit(vlm, asked())
    edit = editor.edit(half, asked())
    assert_close(logits(vlm, asked(), theirs), logits(half, asked(), edit), rtol=0, atol=0)
