"""DualEdit and VisEdit: they learn, come back from files, and refuse what they are not for."""

import copy
import json

import numpy as np
import pytest
import tiny_models
import torch
from conftest import tiny_vlm
from inner_edits import assert_restored, state
from inner_edits import logits as answer_logits
from tiny_edits import samples

from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors import EDITORS, DualEdit, VisEdit
from editors.gating.gates import CosineGate
from editors.methods import adapter_editor

QUICK = {"steps": 12, "batch_size": 4, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.05,
         "optimizer": "adam", "validate_every": 12, "save_every": 12, "warmup": 0,
         "preset": "embedded", "gate": "none"}  # fmt: skip
COSINE = {**QUICK, "gate": "prompt_last", "shallow_gate": True}
LAYERS = {"text": [1], "visual": [0]}


@pytest.fixture(scope="module")
def llava():
    vlm = tiny_vlm("llava")
    for parameter in vlm.model.parameters():
        parameter.requires_grad_(False)
    return vlm


@pytest.fixture(scope="module")
def trained(llava, tmp_path_factory):
    """By name an editor, its folder, and the model's weights before it was trained."""
    made = {}
    for name in ("dualedit", "visedit"):
        out, before = tmp_path_factory.mktemp(name), state(llava)
        editor = EDITORS[name].train(llava, samples(8), layers=LAYERS, out=out, **COSINE)
        made[name] = editor, out, before
    return made


@pytest.fixture(scope="module")
def dual(trained):
    return trained["dualedit"][:2]


@pytest.mark.parametrize("name", ["visedit", "dualedit"])
def test_training_lowers_the_loss_and_leaves_the_model(name, llava, trained):
    editor, _, before = trained[name]
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.97 * losses[0]
    assert_restored(llava, before)


def test_training_again_gives_the_same_to_the_last_bit(llava, dual, tmp_path):
    again = DualEdit.train(llava, samples(8), layers=LAYERS, out=tmp_path, **COSINE)
    for a, b in zip(again.sites, dual[0].sites, strict=True):
        for name, value in a.adapter.state_dict().items():
            assert torch.equal(value, b.adapter.state_dict()[name]), name


def test_an_edit_moves_the_answer_towards_its_target(llava, dual):
    request = samples(1)[0].request
    edit = dual[0].edit(llava, request)
    batch = llava.encode([request.image], [request.prompt], [request.target])
    asked = batch.labels != -100
    wanted = batch.labels[asked]
    gain = [
        logits[asked].log_softmax(-1).gather(1, wanted[:, None]).sum()
        for logits in (answer_logits(llava, request), answer_logits(llava, request, edit))
    ]
    assert gain[1] > gain[0] + 1


def test_before_training_an_edit_changes_nothing(llava, tmp_path):
    none = {**COSINE, "steps": 0}
    editor = DualEdit.train(llava, samples(4), layers=LAYERS, out=tmp_path, **none)
    request = samples(1)[0].request
    plain = answer_logits(llava, request)
    assert torch.equal(answer_logits(llava, request, editor.edit(llava, request)), plain)


def test_text_alone_passes_visedit_to_the_last_bit(llava, trained):
    sample = samples(1)[0]
    edit = trained["visedit"][0].edit(llava, sample.request)
    (about_text,) = sample.text_locality
    plain = answer_logits(llava, about_text)
    assert torch.equal(answer_logits(llava, about_text, edit), plain)
    assert not torch.equal(
        answer_logits(llava, sample.request, edit), answer_logits(llava, sample.request)
    )


def test_what_is_saved_is_what_is_loaded(llava, dual):
    editor, out = dual
    loaded = DualEdit.load(out, llava)
    request = samples(1)[0].request
    assert torch.equal(
        answer_logits(llava, request, loaded.edit(llava, request)),
        answer_logits(llava, request, editor.edit(llava, request)),
    )
    record = json.loads((out / "editor.json").read_text())
    assert record["editor"] == "dualedit"
    assert record["adapters"]["layers"] == LAYERS


def test_a_folder_without_its_tensors_holds_no_editor(llava, dual, tmp_path, monkeypatch):
    """`attrib table` and `load_editor` take a folder with a record for a whole editor."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(adapter_editor, "save_tensors", killed)
        dual[0].save(tmp_path)
    assert not (tmp_path / "editor.json").exists()
    dual[0].save(tmp_path)
    assert DualEdit.load(tmp_path, llava).layers == dual[0].layers


def test_adapters_that_see_phrases_learn_and_come_back_from_their_folder(llava, tmp_path):
    few, more = {**QUICK, "steps": 6}, {"signal": "both", "signal_window": 3}
    editor = DualEdit.train(llava, samples(4), layers=LAYERS, out=tmp_path, **few, **more)
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.97 * losses[0]
    loaded = DualEdit.load(tmp_path, llava)
    request = samples(1)[0].request
    logits = [answer_logits(llava, request, one.edit(llava, request)) for one in (editor, loaded)]
    assert torch.equal(*logits) and not torch.equal(logits[0], answer_logits(llava, request))


def test_another_model_or_editor_is_refused(llava, dual, tmp_path):
    _, out = dual
    with pytest.raises(SetupError, match="trained for llava, whose weights are not those of"):
        DualEdit.load(out, tiny_vlm("blip2_llama"))
    half = VLM(copy.deepcopy(llava.model).bfloat16(), llava.processor, "llava")
    with pytest.raises(SetupError, match="llava in float32, and llava is loaded in bfloat16; load"):
        DualEdit.load(out, half)
    with pytest.raises(SetupError, match="holds the editor 'dualedit', not 'visedit'"):
        VisEdit.load(out, llava)
    with pytest.raises(SetupError, match="holds no editor"):
        VisEdit.load(tmp_path, llava)


@pytest.mark.parametrize(("layers", "message"), [
    ({"text": [9]}, "there is no layer 9; llava has layers 0 to"),
    ({"text": [-1]}, "there is no layer -1"),
    ({"sound": [1]}, "none given"),
    ({"text": [1, 1]}, "names a layer twice"),
])  # fmt: skip
def test_layers_that_are_not_there_are_refused(llava, tmp_path, layers, message):
    with pytest.raises(AttribError, match=message):
        DualEdit.train(llava, samples(4), layers=layers, out=tmp_path, **QUICK)


def test_unknown_settings_and_presets_are_refused(llava, tmp_path):
    with pytest.raises(AttribError, match=r"no setting 'speed'; there are .*batch_size"):
        DualEdit.train(llava, samples(4), layers=LAYERS, out=tmp_path, speed=3)
    with pytest.raises(AttribError, match="no preset 'fast'; there are auto, default, tuned-small"):
        DualEdit.train(llava, samples(4), layers=LAYERS, out=tmp_path, preset="fast")
    with pytest.raises(AttribError, match="0 samples are too few to train on"):
        DualEdit.train(llava, [], layers=LAYERS, out=tmp_path, **QUICK)


def test_a_gate_is_saved_and_loaded_with_its_editor_and_may_be_taken_away(llava, dual, tmp_path):
    editor, _ = dual
    assert editor.gate.name == "prompt_last"
    editor.save(tmp_path)
    loaded = DualEdit.load(tmp_path, llava).gate
    assert (loaded.layer, loaded.threshold) == (editor.gate.layer, editor.gate.threshold)
    editor.with_gate(None).save(tmp_path)
    assert DualEdit.load(tmp_path, llava).gate is None


def test_a_gate_has_the_seed_of_its_training(llava, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(adapter_editor, "fit_gate", lambda *_, seed, **__: seeds.append(seed))
    for seed in (0, 3):
        given = {**QUICK, "gate": "learned", "steps": 0, "seed": seed}
        DualEdit.train(llava, samples(3), layers=LAYERS, out=tmp_path / str(seed), **given)
    assert seeds == [0, 3]


def test_a_gate_must_not_read_what_is_written_before_it(dual):
    with pytest.raises(AttribError, match="reads layer 1, but layer 0 is written before it"):
        dual[0].with_gate(CosineGate(1, 0.5))


def test_a_gate_that_there_is_not_is_refused(llava, tmp_path):
    with pytest.raises(AttribError, match="no gate 'garden'; there are none, prompt_last"):
        wrong = {**QUICK, "gate": "garden"}
        DualEdit.train(llava, samples(4), layers=LAYERS, out=tmp_path, **wrong)


def test_adapters_that_attend_to_nothing_train_in_units_of_their_own_too(tmp_path):
    vlm = tiny_vlm("llava")
    quick = {**QUICK, "steps": 2, "signal": "none", "own_units": True}
    editor = DualEdit.train(vlm, samples(4), layers=LAYERS, out=tmp_path, **quick)
    assert all(np.isfinite(record["loss"]) for record in editor.trained["curve"])


def test_a_model_in_half_precision_gets_adapters_in_single_precision(tmp_path):
    vlm = VLM(*tiny_models.build("llava"))  # one of its own: others use the shared one
    vlm.model.to(torch.bfloat16)
    few = {**QUICK, "steps": 6, "batch_size": 2, "gate": "none"}
    editor = DualEdit.train(vlm, samples(3), layers=LAYERS, out=tmp_path, **few)
    assert {p.dtype for p in editor.module.parameters()} == {torch.float32}
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.97 * losses[0]
    request = samples(1)[0].request
    edited = answer_logits(vlm, request, editor.edit(vlm, request))
    assert edited.dtype == torch.bfloat16
    assert not torch.equal(edited, answer_logits(vlm, request))
