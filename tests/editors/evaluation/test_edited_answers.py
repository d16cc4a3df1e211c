"""Faster evaluation: the same answers from fewer passes."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from conftest import picture, tiny_vlm
from planted_editors import HEAD, Nothing, Says, Writes, sample

from attrib.data import EditRequest
from attrib.files import versions
from attrib.forward.hooks import on_output
from attrib.model.vlm import VLM
from editors import IKE, LTE, SERAC
from editors.base import SequentialEdit, WeightEdit, is_causal
from editors.evaluation import evaluate, reference_model
from editors.evaluation.edited import edited_answers
from editors.evaluation.probes import EncodedProbes
from editors.evaluation.protocols import Answer
from editors.evaluation.reference_model import ReferenceModel, counters, load_answers
from editors.evaluation.scoring import COST, TIMED
from editors.gating.gated_editor import GatedEditor, behind, gate_features
from editors.gating.gates import CosineGate
from editors.weights.passes import WeightCaller

PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def whole(vlm, edit, probes):
    """The answers of all probes inside the edit, generated from the prompts."""
    with edit.applied(vlm):
        return probes.answers(vlm)


def records(answers):
    return [answer.record() for answer in answers]


@torch.no_grad()
def median_gate(vlm, one, token="prompt_last"):
    """A gate that opens for half of the inputs of an edit."""
    open_gate = CosineGate(0, -1.0, token)
    probes = EncodedProbes.of(vlm, one, PROTOCOLS, 16)
    made = GatedEditor(Nothing(), open_gate).edit(vlm, one.request)
    queries = gate_features(vlm, open_gate, probes.batches[0])
    scores = open_gate.scores(queries, [made.memories[0].features])[:, 0]
    return CosineGate(0, float(scores.median()), token)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [16, 3])
def test_closed_inputs_keep_their_answers_and_open_ones_are_those_of_a_whole_run(vlm, batch_size):
    one = sample(1, "red")
    gate, probes = median_gate(vlm, one), EncodedProbes.of(vlm, one, PROTOCOLS, batch_size)
    before = probes.answers(vlm, causal=True)
    edit = behind(Says(), gate).edit(vlm, one.request)
    chosen = [e for batch in probes.batches for e in edit.of_rows(vlm, batch)]
    assert 0 < sum(e is None for e in chosen) < len(chosen)
    found = edited_answers(vlm, edit, probes, before)
    assert records(found) == records(whole(vlm, edit, probes))
    for row, is_open in enumerate(chosen):
        assert (found[row] is before[row]) == (is_open is None)
    assert all("red" in found[row].text for row, e in enumerate(chosen) if e is not None)


@torch.no_grad()
def test_an_edit_of_hidden_states_answers_as_in_a_whole_run(vlm):
    one = sample(0, " R")
    probes = EncodedProbes.of(vlm, one, PROTOCOLS, 16)
    before = probes.answers(vlm, causal=True)
    plain = Writes().edit(vlm, one.request)
    assert is_causal(plain)
    assert records(edited_answers(vlm, plain, probes, before)) == records(whole(vlm, plain, probes))
    gate = median_gate(vlm, one)
    features = GatedEditor(Writes(), gate).edit(vlm, one.request).memories[0].features
    gated = replace(plain, memories=[replace(plain.memories[0], gate=features)], gate=gate)
    assert {e is None for e in gated.of_rows(vlm, probes.batches[0])} == {True, False}
    assert records(edited_answers(vlm, gated, probes, before)) == records(whole(vlm, gated, probes))


@torch.no_grad()
@pytest.mark.parametrize("editor", [Says("red"), Writes()], ids=["says", "writes"])
@pytest.mark.parametrize("batch_size", [16, 3])
def test_in_half_precision_open_inputs_have_the_bits_of_the_edit_without_a_gate(editor, batch_size):
    vlm = VLM(*tiny_models.build("llava"))  # not the shared one, whose dtype others rely on
    vlm.model.bfloat16()
    one = sample(1, " R")
    gate, probes = median_gate(vlm, one), EncodedProbes.of(vlm, one, PROTOCOLS, batch_size)
    before = probes.unedited_answers(vlm)
    alone = edited_answers(vlm, editor.edit(vlm, one.request), probes, before)
    edit = GatedEditor(editor, gate).edit(vlm, one.request)
    chosen = [e for batch in probes.batches for e in edit.of_rows(vlm, batch)]
    assert {e is None for e in chosen} == {True, False}
    found = edited_answers(vlm, edit, probes, before)
    wanted = [old if e is None else new for e, old, new in zip(chosen, before, alone, strict=True)]
    assert records(found) == records(wanted) != records(before)


@pytest.mark.parametrize("kind", [IKE, LTE, SERAC])
def test_editors_that_answer_by_text_or_another_model_work_behind_a_gate(vlm, kind, tmp_path):
    """Open inputs get the edit's answer, closed ones the unedited model's, bit for bit."""
    few = {} if kind is IKE else {"steps": 1, "batch_size": 2, "preset": "tuned-small"}
    editor = kind.train(vlm, [sample(i) for i in range(4)], out=tmp_path, **few)
    one = sample(7)
    gate, probes = median_gate(vlm, one), EncodedProbes.of(vlm, one, PROTOCOLS, 16)
    with torch.no_grad():
        before = probes.answers(vlm, causal=True)
        edit, alone = (behind(editor, g).edit(vlm, one.request) for g in (gate, None))
        edited = records(whole(vlm, alone, probes))
        found = records(edited_answers(vlm, edit, probes, before))
        chosen = edit.of_rows(vlm, probes.batches[0])
    assert {e is None for e in chosen} == {True, False}
    wanted = [records(before)[i] if e is None else edited[i] for i, e in enumerate(chosen)]
    assert found == wanted and edited != records(before)


@torch.no_grad()
def test_a_gate_that_reads_the_answer_is_asked_as_before(vlm):
    one = sample(0)
    gate = median_gate(vlm, one, "sequence_last")
    probes = EncodedProbes.of(vlm, one, PROTOCOLS, 16)
    before = probes.answers(vlm, causal=True)
    routed = behind(Says(), gate).edit(vlm, one.request)
    assert routed.of_rows(vlm, probes.batches[0]) is None and not is_causal(routed)
    assert records(edited_answers(vlm, routed, probes, before)) == records(
        whole(vlm, routed, probes)
    )
    plain = Writes().edit(vlm, one.request)
    hidden = replace(plain, gate=gate)
    assert not is_causal(hidden)


def test_which_edits_are_causal():
    assert is_causal(WeightEdit({})) and is_causal(SequentialEdit([WeightEdit({})]))
    assert not is_causal(SequentialEdit([WeightEdit({}), object()]))
    assert not is_causal(object())


def scores(result):
    frame = result.frame[result.frame["protocol"] != COST]
    return frame.reset_index(drop=True)


def test_kept_answers_are_not_asked_for_again(vlm, tmp_path, monkeypatch):
    some = [sample(0), sample(1, "blue")]
    first = evaluate(vlm, Says(), some, reference=ReferenceModel(vlm, folder=tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    again = ReferenceModel(vlm, folder=tmp_path)
    monkeypatch.setattr(ReferenceModel, "_ask", None)
    second = evaluate(vlm, Says(), some, reference=again)
    assert scores(first).equals(scores(second))
    monkeypatch.undo()
    files[0].write_text("[{")
    third = evaluate(vlm, Says(), some, reference=ReferenceModel(vlm, folder=tmp_path))
    assert scores(first).equals(scores(third)) and load_answers(tmp_path / "none") is None
    assert load_answers(files[0]) is not None  # the damaged file was replaced


def test_kept_answers_are_of_one_model_and_of_these_inputs(vlm, tmp_path, monkeypatch):
    reference = ReferenceModel(vlm, ("generate", "easyedit"), folder=tmp_path)
    asked = [
        sample(0),
        replace(sample(0), request=EditRequest(picture(seed=9), "What is it?", "red")),
        sample(0, text_generality=[EditRequest(picture(seed=0), "Say it?", "red")]),
    ]
    keys = {reference._key(reference.encode(one)) for one in asked}
    assert len(keys) == 3
    head = dict(vlm.model.named_parameters())[HEAD]
    with WeightEdit({HEAD: head.detach() * 1.01}).applied(vlm):
        other = ReferenceModel(vlm, ("generate", "easyedit"), folder=tmp_path)
        assert other._key(other.encode(asked[0])) not in keys
    probes = reference.encode(asked[0])
    with monkeypatch.context() as patch:
        patch.setattr(vlm.model.generation_config, "eos_token_id", [7, 8])
        keys.add(reference._key(probes))
    with monkeypatch.context() as patch:
        patch.setattr(reference_model, "versions", lambda: {**versions(), "torch": "0"})
        keys.add(reference._key(probes))
    assert len(keys) == 5 and reference._key(probes) in keys
    few = ReferenceModel(vlm, ("generate",), folder=tmp_path)
    assert few._key(few.encode(asked[0])) not in keys
    found = reference.answers(reference.encode(asked[0]))
    read = [Answer.of(record) for record in records(found)]
    assert records(read) == records(found)
    assert all(torch.equal(a.best, b.best) for a, b in zip(read, found, strict=True))


def test_passes_are_timed_for_the_first_edits(vlm):
    some = [
        sample(i, request=EditRequest(picture(seed=i), "What?", "red")) for i in range(TIMED + 2)
    ]
    frame = evaluate(vlm, Nothing(), some, ("paper",)).where(protocol=COST).frame
    counts = frame["metric"].value_counts()
    assert counts["edit_ms"] == counts["bytes"] == TIMED + 2
    assert counts["pass_ms"] == counts["edited_pass_ms"] == TIMED


def test_counters_tell_changes_without_reading_weights(vlm):
    before = counters(vlm.model)
    weight = dict(vlm.model.named_parameters())[HEAD]
    with WeightEdit({HEAD: weight.detach().clone()}).applied(vlm):
        assert counters(vlm.model) != before
    assert counters(vlm.model) == before
    with on_output(vlm.layers[0], lambda _h: None):
        assert counters(vlm.model) != before
    vlm.layers[1].train(not vlm.layers[1].training)
    assert counters(vlm.model) != before
    vlm.layers[1].train(not vlm.layers[1].training)
    assert counters(vlm.model) == before
    with torch.no_grad():
        weight.add_(0)
    assert counters(vlm.model) != before


def test_a_shared_weight_has_its_value_wherever_it_is_used():
    first, second = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    model, x = torch.nn.Sequential(first, second), torch.ones(1, 2)
    kept, value = first.weight, torch.eye(2).requires_grad_()
    caller = WeightCaller(model, ["0.weight"])
    out = caller.call({"0.weight": 3 * value}, lambda: model(x))
    assert torch.equal(out, torch.full((1, 2), 9.0))
    (grad,) = torch.autograd.grad(out.sum(), [value])
    assert bool(grad.any()) and first.weight is second.weight is kept
