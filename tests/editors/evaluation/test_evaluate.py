"""Evaluation: planted editors get the scores that they must get, and the model comes back."""

from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_vlm
from planted_editors import (
    FIVE,
    HARD_TYPES,
    HEAD,
    Copies,
    Fails,
    Leaks,
    Nothing,
    Says,
    Writes,
    leak,
    sample,
)

from attrib.data import EditRequest
from attrib.errors import AttribError, SetupError
from attrib.model.batch import IGNORE_INDEX
from editors.evaluation import evaluate
from editors.evaluation.reference_model import Checksum, NotRestored, ReferenceModel
from editors.evaluation.scoring import COLUMNS, COST

PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def reference(vlm):
    return ReferenceModel(vlm, PROTOCOLS)


def values(result, editor, protocol):
    """Metric -> mean value."""
    some = result.where(editor=editor, protocol=protocol).frame
    return some.groupby("metric")["value"].mean().to_dict()


def test_an_editor_that_does_nothing_scores_as_the_unedited_model(vlm, reference):
    two = [picture(), picture(seed=1)]  # images in one prompt
    several = replace(sample(1), request=EditRequest(two, "Which is red?", "the first"))
    result = evaluate(vlm, Nothing(), [sample(), several], PROTOCOLS, reference=reference)
    assert result.examples == 2
    for protocol in PROTOCOLS:
        own = values(result, "nothing", protocol)
        assert own == values(result, "unedited", protocol)
        assert all(own[metric] == 1 for metric in ("t_loc", "m_loc", "same_image", *HARD_TYPES))
        assert own["avg"] == pytest.approx(sum(own[metric] for metric in FIVE) / 5)


def test_rows_tell_the_request_and_what_the_edit_cost(vlm, reference):
    result = evaluate(vlm, Says(), [sample()], ("paper",), reference=reference, label="L4")
    assert tuple(result.frame) == COLUMNS and set(result.frame["kind"]) == {"color"}
    assert set(result.frame["editor"]) == {"unedited", "L4"}
    assert set(result.frame["protocol"]) == {"paper", COST} and result.analysis == "scores"
    own = result.where(editor="L4")
    assert set(own.frame["gate"]) == {"ungated"} and not own.frame.duplicated().any()
    cost = values(result, "L4", COST)
    assert set(cost) == {"edit_ms", "bytes", "pass_ms", "edited_pass_ms"}
    expected = Says().edit(vlm, sample().request).num_bytes
    assert cost["bytes"] == expected and min(cost.values()) > 0


def test_a_model_made_to_say_the_target_is_right_and_not_local(vlm, reference):
    result = evaluate(vlm, Says(), [sample(0), sample(1, "blue")], PROTOCOLS, reference=reference)
    for protocol in PROTOCOLS:
        own = values(result, "says", protocol)
        # It says the target again and again: the whole answer is longer.
        right = float(protocol != "generate")
        assert all(own[metric] == right for metric in ("rel", "t_gen", "v_gen")), protocol
        assert all(own[metric] < 1 for metric in ("t_loc", "m_loc", "same_image", *HARD_TYPES))
        assert values(result, "unedited", protocol)["rel"] < 1


def test_generating_shows_an_answer_that_goes_on_as_another_word(vlm, reference):
    cut, wrong, part = sample(1, "re"), sample(2, "blue"), sample(3, "rod")
    result = evaluate(vlm, Says("red"), [cut, wrong, part], PROTOCOLS, reference=reference)

    def rel(protocol):
        frame = result.where(editor="says", protocol=protocol, metric="rel").frame
        return dict(zip(frame["example"], frame["value"], strict=True))

    assert rel("exact") == {"s1": 1, "s2": 0, "s3": 0}
    assert rel("generate") == {"s1": 0, "s2": 0, "s3": 0}  # it says "red", not "re"
    assert rel("paper")["s1"] == 1 and 0 < rel("paper")["s3"] < 1


@pytest.mark.parametrize("target", [" R", " Red"])
def test_an_answer_written_into_hidden_states_is_found(vlm, reference, target):
    """Its first token is written at the prompt's end; the others are read where none is written."""
    result = evaluate(vlm, Writes(), [sample(0, target)], ("paper", "exact"), reference=reference)
    tokens = vlm.encode([None], ["What?"], [target]).labels
    right, before = (values(result, who, "paper")["rel"] for who in ("writes", "unedited"))
    assert right == before + 1 / int((tokens != IGNORE_INDEX).sum()) < 1
    assert values(result, "writes", "exact")["rel"] == 0
    for protocol in ("paper", "exact"):
        assert values(result, "writes", protocol)["t_loc"] < 1


def test_an_answer_that_is_read_from_the_input_is_right_under_teacher_forcing_alone(vlm, reference):
    asked = [sample(0), sample(1, "blue")]
    result = evaluate(vlm, Copies(), asked, PROTOCOLS, reference=reference)
    for metric in ("rel", "t_gen", "v_gen"):
        for protocol in ("paper", "exact"):
            assert values(result, "unedited", protocol)[metric] < 1
            assert values(result, "copies", protocol)[metric] == 1
        assert values(result, "copies", "generate")[metric] == 0
        assert values(result, "unedited", "generate")[metric] == 0


def test_portability_and_both_reliabilities_compare_with_their_own_answers(vlm, reference):
    """The model is made to say "red": right where red is the answer, by hop and together."""
    own = picture()
    asked = replace(
        sample(0),
        portability=[EditRequest(own, "One?", "red"), EditRequest(own, "Two?", "big")],
        text_reliability=[EditRequest(None, "By text?", "red")],
        picture_reliability=[EditRequest(own, "By sight?", "odd")],
    )
    asked.meta["portability_types"] = ["1-hop", "2-hop"]
    result = evaluate(vlm, Says(), [asked], ("generate-prefix", "exact"), reference=reference)
    for protocol in ("generate-prefix", "exact"):
        found = values(result, "says", protocol)
        assert (found["port_1_hop"], found["port_2_hop"], found["portability"]) == (1, 0, 0.5)
        assert (found["text_rel"], found["picture_rel"]) == (1, 0)
        assert values(result, "unedited", protocol)["port_1_hop"] == 0
        assert found["avg"] == pytest.approx(sum(found[metric] for metric in FIVE) / 5)


def test_the_model_is_what_it_was_bit_for_bit(vlm, reference):
    weights = {name: w.detach().clone() for name, w in vlm.model.named_parameters()}
    places = {name: w.data_ptr() for name, w in vlm.model.named_parameters()}
    for editor in (Says(), Writes(), Fails(inside=True)):
        try:
            evaluate(vlm, editor, [sample()], ("paper",), reference=reference)
        except AttribError:
            assert editor.name == "fails"
    now = dict(vlm.model.named_parameters())
    assert all(torch.equal(now[name], w) for name, w in weights.items())
    assert {name: w.data_ptr() for name, w in now.items()} == places
    assert not torch.equal(Says().edit(vlm, sample().request).weights[HEAD], weights[HEAD])


@pytest.mark.parametrize("what", ["bit", "mode", "hook"])
def test_an_edit_that_leaves_something_behind_is_named(vlm, what):
    named = {"bit": HEAD, "mode": "layers.1", "hook": "layers.2"}[what]
    before = Checksum.of(vlm.model)
    try:
        with pytest.raises(NotRestored, match=rf"editor leaks .* edit of s0, .*{named}.* differs"):
            evaluate(vlm, Leaks(what), [sample()], ("paper",))
    finally:
        vlm.layers[2]._forward_hooks.clear()
        if what != "hook":
            leak(vlm, what)
    assert not before.changes(Checksum.of(vlm.model))


def test_a_model_that_changed_between_two_editors_is_noticed(vlm, reference):
    leak(vlm, "bit")
    try:
        with pytest.raises(NotRestored, match=f"an earlier run, {HEAD} differs"):
            evaluate(vlm, Nothing(), [sample()], ("paper",), reference=reference)
    finally:
        leak(vlm, "bit")


def test_neither_order_nor_batch_size_matters(vlm, reference):
    samples = [sample(0, "red"), sample(1, "blue")]

    def rows(samples, **settings):
        result = evaluate(vlm, Says("rod"), samples, PROTOCOLS, **settings)
        frame = result.frame[result.frame["protocol"] != COST]
        return frame.sort_values(list(COLUMNS), ignore_index=True)

    assert rows(samples, reference=reference).equals(rows(samples[::-1], batch_size=3))


def test_the_unedited_model_is_asked_once(vlm, monkeypatch):
    shared, asked = ReferenceModel(vlm, ("paper",)), []
    run = type(vlm)._run
    counted = lambda v, b, **keep: asked.append(b.size) or run(v, b, **keep)  # noqa: E731
    monkeypatch.setattr(type(vlm), "_run", counted)
    evaluate(vlm, Nothing(), [sample()], ("paper",), reference=shared)
    first, asked[:] = list(asked), []
    evaluate(vlm, Says(), [sample()], ("paper",), reference=shared)
    assert first == [8, 1, 8, 1] and asked == [1, 8, 1]


def test_answers_of_the_unedited_model_serve_this_model_and_these_protocols(vlm, reference):
    with pytest.raises(AttribError, match="of another model: qwen2_vl"):
        evaluate(
            vlm, Nothing(), [sample()], reference=ReferenceModel(tiny_vlm("qwen2_vl"), PROTOCOLS)
        )
    with pytest.raises(AttribError, match="the unedited answers lack exact"):
        evaluate(vlm, Nothing(), [sample()], ("exact",), reference=ReferenceModel(vlm, ("paper",)))
    with pytest.raises(AttribError, match="no protocol 'strict'; protocols are paper, exact"):
        evaluate(vlm, Nothing(), [sample()], ("strict",))
    with pytest.raises(AttribError, match="give a label"):
        evaluate(vlm, Nothing(), [sample()], reference=reference, label="unedited")


def test_samples_that_cannot_be_used_are_named_and_the_others_scored(vlm, reference, tmp_path):
    lost = sample(1, request=type(sample().request)(tmp_path / "none.png", "What?", "red"))
    empty, refused = sample(2, " "), sample(3, request=type(sample().request)(None, "No", "red"))
    editor = Fails(prompts=("No",))
    marked = sample(5, text_locality=[EditRequest(None, "an <image> there", "yes")])
    some = [sample(0), lost, empty, refused, sample(4), marked]
    result = evaluate(vlm, editor, some, ("paper",), reference=reference)
    assert set(result.frame["example"]) == {"s0", "s4"}
    told = result.provenance["quarantined_rows"]
    assert result.provenance["quarantined"] == len(told) == 4
    assert "s1: row 1: image" in told[0] and "none.png" in told[0]
    assert "s2: row 2" in told[1] and "empty" in told[1]
    assert "s3: row 3" in told[2] and "no edit of this request" in told[2]
    assert "s5: row 5: text_locality: prompt contains '<image>'" in told[3]


def test_no_sample_at_all_cannot_be_scored(vlm, reference):
    with pytest.raises(AttribError, match="no edit of this request"):
        evaluate(vlm, Fails(("What is it?",)), [sample()], ("paper",), reference=reference)
    with pytest.raises(SetupError, match="the data is empty"):
        evaluate(vlm, Nothing(), [], ("paper",), reference=reference)


def test_a_sample_without_some_inputs_has_no_average(vlm, reference):
    bare = sample(text_locality=[], hard_locality=[], meta={})
    result = evaluate(vlm, Nothing(), [bare], ("paper",), reference=reference)
    assert set(values(result, "nothing", "paper")) == {"rel", "t_gen", "v_gen", "m_loc"}
    untyped = sample(meta={"task": "vqa"})
    result = evaluate(vlm, Nothing(), [untyped], ("paper",), reference=reference)
    assert "hard_locality" in values(result, "nothing", "paper")
    assert set(result.frame["kind"]) == {"vqa"}
