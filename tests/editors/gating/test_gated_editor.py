"""Any editor behind any gate: each row has its own edit or none, bit for bit."""

import pytest
import torch
from conftest import tiny_vlm
from planted_editors import Says, sample
from tiny_edits import requests, samples

from editors import FTL, IKE, SERAC
from editors.base import WeightEdit, encode_requests
from editors.evaluation import evaluate
from editors.evaluation.reference_model import Checksum
from editors.evaluation.scoring import gate_name
from editors.gating.gated_editor import GatedEditor, behind
from editors.gating.gates import CosineGate

GATE = CosineGate(1, 0.999)  # opens for the edited prompt alone


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def editors(llava, tmp_path_factory):
    """An editor of weights, one of prompts, and one with a gate of its own."""
    folder, few = tmp_path_factory.mktemp("editors"), {"preset": "tuned-small"}
    small = {"steps": 1, "batch_size": 2, "width": 16, "num_layers": 1, "num_heads": 2,
             "scope_width": 16, "scope_num_layers": 1}  # fmt: skip
    return {
        "ft-l": FTL.train(llava, out=folder / "l", steps=2, **few),
        "ike": IKE.train(llava, samples(3), out=folder / "i", **few),
        "serac": SERAC.train(llava, samples(3), out=folder / "s", **few, **small),
        "says": Says("red"),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", ["ft-l", "ike", "serac", "says"])
def test_rows_in_scope_are_edited_and_the_others_are_the_unedited_models_bit_for_bit(
    name, llava, editors
):
    editor, (one, text, other, _) = editors[name], requests()
    state = Checksum.of(llava.model)
    with torch.enable_grad():
        edit = behind(editor, GATE).edit(llava, one)
        alone = behind(editor, None).edit(llava, one)
    forced = encode_requests(llava, [text, one, other])
    asked = encode_requests(llava, [text, one, other], targets=False)
    for batch in (forced, asked):
        plain = llava.logits(batch)
        with edit.applied(llava):
            routed, last = llava.logits(batch), llava.last_logits(batch)
        with alone.applied(llava):
            everywhere = llava.logits(batch)
        assert torch.equal(routed[[0, 2]], plain[[0, 2]])
        assert torch.equal(routed[1], everywhere[1]) and not torch.equal(routed[1], plain[1])
        assert not torch.equal(everywhere[0], plain[0])  # without the gate it is not spared
        assert torch.allclose(last[1], routed[1][batch["last"][1]][0], atol=1e-5)
    texts = llava.generate(asked, 3)
    with edit.applied(llava):
        answers = llava.generate(asked, 3)
    assert [answers[0], answers[2]] == [texts[0], texts[2]]
    with alone.applied(llava):
        assert answers[1] == llava.generate(asked, 3)[1]
    assert not state.changes(Checksum.of(llava.model))


def test_several_edits_of_weights_are_held_at_once_and_of_equals_the_newest_applies(llava):
    one, _, other, _ = requests()
    editor = GatedEditor(Says(), GATE)
    for request, target in ((one, "red"), (other, "big"), (one, "bad")):
        object.__setattr__(request, "target", target)
        first = editor.edit(llava, request)
        made = editor.merge([made, first]) if target != "red" else first
    batch = encode_requests(llava, [one, other, requests()[3]], targets=False)
    plain = llava.generate(batch, 4)
    with made.applied(llava):
        answers = llava.generate(batch, 4)
    assert answers[0].startswith("bad") and answers[1].startswith("big")
    assert answers[2] == plain[2]
    assert made.num_bytes > sum(memory.edit.num_bytes for memory in made.memories)


def test_tables_name_the_gate_and_hold_any_editor(llava):
    nothing = CosineGate(1, 1.0)  # no input is as similar as that but the request itself
    result = evaluate(llava, behind(Says(), nothing), [sample()], ("paper", "generate"))
    own = result.where(editor="says", protocol="paper").frame.set_index("metric")["value"]
    assert gate_name(behind(Says(), GATE)) == "prompt_last"
    assert own["t_loc"] == own["m_loc"] == own["same_image"] == 1
    free = evaluate(llava, behind(behind(Says(), GATE), None), [sample()], ("paper",))
    loose = free.where(editor="says", protocol="paper").frame.set_index("metric")["value"]
    assert loose["t_loc"] < 1 and isinstance(Says("a").edit(llava, requests()[0]), WeightEdit)
