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
ADAPTERS = {**TRAINED, "d_adapter": 16, "num_heads": 2, "layers": {"text": [2], "visual": [0]},
            "gate": "prompt_last", "shallow_gate": True}  # fmt: skip
MADE = {
    "dualedit": ADAPTERS,
    "mend": {**TRAINED, "rank": 4},
    "serac": {**TRAINED, "width": 32, "num_layers": 1, "num_heads": 2,
              "scope_width": 16, "scope_num_layers": 1},
    "visedit": {**TRAINED, "d_adapter": 16, "num_heads": 2, "layers": {"visual": [0]},
                "gate": "none"},
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


@torch.no_grad()
def answers(vlm, edit=None):
    """Logits of the request, another one and a text alone, in one batch, on the CPU."""
    some = (asked(), asked(3), TEXT)
    batch = vlm.encode(
        [one.image for one in some], [one.prompt for one in some], [one.target for one in some]
    )
    with nullcontext() if edit is None else edit.applied(vlm):
        found = vlm.logits(batch).cpu()
    return found[batch.inputs["attention_mask"].cpu().bool()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By name the folder of an editor of the whole model, and what its edit answers there."""
    made = {}

    def editor(name):
        if name not in made:
            folder, vlm = tmp_path_factory.mktemp(name), tiny_vlm("llava")
            one = EDITORS[name.split(",")[0]].train(
                vlm, samples(4), out=folder / "run", **MADE[name]
            )
            one.save(folder / "editor")
            made[name] = folder / "editor", answers(vlm, one.edit(vlm, asked()))
        return made[name]

    return editor


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """The model offloaded to files, or split over two devices; each is made once."""
    made = {}

    def vlm(*where):
        if where not in made:
            whole = tiny_vlm("llava")
            made[where] = (
                offloaded(whole, "disk", tmp_path_factory.mktemp("weights"))
                if where == ("disk",)
                else split(whole, *where)
            )
        return made[where]

    return vlm


@pytest.fixture(scope="module")
def plain():
    """What the whole model answers without an edit."""
    return answers(tiny_vlm("llava"))


@pytest.mark.parametrize("where", ["disk", "split"])
@pytest.mark.parametrize("name", MADE)
def test_an_edit_is_that_of_the_whole_model(name, where, saved, placed, plain, tmp_path):
    folder, edited = saved(name)
    vlm = placed("disk") if where == "disk" else placed(*DEVICES[name == "ke"])
    with logical_devices() if where == "split" else nullcontext():
        loaded = EDITORS[name.split(",")[0]].load(folder, vlm)
        theirs = loaded.edit(vlm, asked())
        saved_edit = save_edit(theirs, tmp_path / "edit.safetensors", vlm, loaded)
        found = answers(vlm, theirs)
        assert_close(found, edited, rtol=1e-6, atol=1e-6)
        assert torch.equal(answers(vlm, load_edit(saved_edit, vlm, loaded)), found)
        assert_close(answers(vlm), plain, rtol=1e-6, atol=1e-6)
    if name.startswith("ft"):
        assert not torch.equal(edited, plain)


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
        settings = GateTraining(steps=1, batch_size=2, width=8)
        gate = (
            fit_cosine_gate(vlm, samples(2), 0) if kind == "cosine"
            else train_gate(vlm, samples(2), [0, vlm.num_layers - 1], settings)
        )  # fmt: skip
        return gate_scores(vlm, samples(2), gate)["value"].to_numpy(), gate.threshold

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
    editor = EDITORS[name].train(half, samples(2), out=tmp_path / "run", **MADE[name])
    editor.save(tmp_path / "editor")
    vlm = offloaded(half, "disk", tmp_path / "weights")
    theirs = EDITORS[name].load(tmp_path / "editor", vlm).edit(vlm, asked())
    edit = editor.edit(half, asked())
    assert_close(logits(vlm, asked(), theirs), logits(half, asked(), edit), rtol=0, atol=0)
