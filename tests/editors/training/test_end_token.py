"""The end token after targets: which inputs have it, and that an edited model then stops."""

import copy

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import asked
from tiny_edits import samples

from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from editors import EDITORS
from editors.base import encode_requests
from editors.methods.lte_objective import facts_of
from editors.training.end_token import (
    end_token_text,
    with_end_token,
    with_end_tokens,
    without_end_token,
)

FAMILIES = ("llava", "blip2_opt", "qwen2_vl")
FEW = {"steps": 2, "batch_size": 2}
SMALL = {
    "visedit": {**FEW, "d_adapter": 16, "num_heads": 2, "gate": "none"},
    "dualedit": {**FEW, "d_adapter": 16, "num_heads": 2, "gate": "none"},
    "mend": {**FEW, "rank": 4},
    "ke": {**FEW, "d_lstm": 8, "d_condition": 16, "d_head": 16},
    "serac": {**FEW, "width": 32, "num_layers": 2, "num_heads": 2},
    "lte": {**FEW, "rank": 2},
    "ft-v": {"steps": 2},
    "ft-l": {"steps": 2},
    "tp": {"steps": 2, "num_memories": 8},
}
LAYERS = {"dualedit": {"text": [1], "visual": [1]}, "visedit": {"visual": [1]}}


def stops(vlm):
    """The ids of the model's end tokens."""
    ids = vlm.model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_that_an_edit_writes_are_a_token_longer_and_others_are_as_they_were(name):
    vlm = tiny_vlm(name)
    (plain,) = samples(1)
    (ended,) = with_end_tokens(vlm, [plain])
    for role in ("request", "text_generality", "visual_generality"):
        before, after = (getattr(one, role) for one in (plain, ended))
        before, after = (one if isinstance(one, list) else [one] for one in (before, after))
        old, new = (encode_requests(vlm, some) for some in (before, after))
        tokens = [batch["target"].sum().item() for batch in (old, new)]
        assert tokens[1] == tokens[0] + 1
        assert new.inputs["input_ids"][0, -1] in stops(vlm)
        assert old.inputs["input_ids"][0, -1] not in stops(vlm)
    for role in ("text_locality", "visual_locality", "hard_locality"):
        assert getattr(ended, role) is getattr(plain, role)


def test_a_target_has_one_end_token_however_often_it_is_added():
    vlm = tiny_vlm("llava")
    once = with_end_token(vlm, asked())
    assert once.target == f"blue thing{end_token_text(vlm)}"
    assert with_end_token(vlm, once).target == once.target
    assert (
        without_end_token(vlm, once).target
        == without_end_token(vlm, asked()).target
        == "blue thing"
    )


def test_a_model_without_an_end_token_is_refused():
    vlm = tiny_vlm("llava")
    model, processor = copy.deepcopy(vlm.model), copy.deepcopy(vlm.processor)
    model.generation_config.eos_token_id = model.config.get_text_config().eos_token_id = None
    processor.tokenizer.eos_token = None
    with pytest.raises(SetupError, match="end token"):
        end_token_text(VLM(model, processor, name="endless"))


def test_the_edited_model_stops_after_the_answer(tmp_path):
    vlm, given = tiny_vlm("llava"), {"steps": 60, "learning_rate": 1e-2}
    prompt = encode_requests(vlm, [asked()], targets=False)
    said = {}
    for end_token in (False, True):
        out = tmp_path / str(end_token)
        editor = EDITORS["ft-l"].train(vlm, out=out, end_token=end_token, **given)
        with editor.edit(vlm, asked()).applied(vlm):
            (said[end_token],) = vlm.generate(prompt, 12)
    assert said[True] == "blue thing"
    assert said[False].startswith("blue thing") and said[False] != "blue thing"


@pytest.mark.parametrize("name", SMALL)
def test_every_editor_trains_saves_and_edits_with_it(name, tmp_path):
    vlm, made = tiny_vlm("llava"), {}
    batch = encode_requests(vlm, [asked()])
    for end_token in (False, True):
        out = tmp_path / str(end_token)
        editor = EDITORS[name].train(
            vlm, samples(4), out=out, layers=LAYERS.get(name), end_token=end_token, **SMALL[name]
        )
        again = type(editor).load(out, vlm)
        assert again.config.end_token is end_token
        for one in (editor, again):
            with one.edit(vlm, asked()).applied(vlm), torch.no_grad():
                made.setdefault(end_token, []).append(vlm.logits(batch))
        assert torch.equal(*made[end_token])
    assert not torch.equal(made[True][0], made[False][0])


def test_the_text_in_front_of_a_question_has_no_end_token(tmp_path):
    vlm = tiny_vlm("llava")
    editor = EDITORS["lte"].train(vlm, samples(4), out=tmp_path, end_token=True, **SMALL["lte"])
    assert end_token_text(vlm) not in editor.edit(vlm, asked()).prompt.texts[0]
    trained = [with_end_token(vlm, asked())]
    assert facts_of(vlm, editor.config, trained) == [f"{asked().prompt} blue thing"]


def test_an_editor_that_trains_nothing_refuses_it(tmp_path):
    with pytest.raises(AttribError, match="end_token: ike trains nothing"):
        EDITORS["ike"].train(tiny_vlm("llava"), samples(4), out=tmp_path, end_token=True)


def test_trainings_of_earlier_versions_resume():
    config = EDITORS["dualedit"].config_class
    vlm = tiny_vlm("llava")
    assert "end_token" not in config.from_preset(vlm).training_options
    assert config.from_preset(vlm, end_token=True).training_options["end_token"] is True
