"""LTE: untrained it is the text alone; it learns to follow it, and the model keeps its weights."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.errors import AttribError, SetupError
from editors.context import PromptEdit, fact_of
from editors.evaluation import evaluate
from editors.evaluation.reference_model import Checksum
from editors.evaluation.scoring import gate_name
from editors.gating import gated_editor
from editors.gating.gates import CosineGate
from editors.methods.lte import LTE
from editors.methods.lte_objective import LowRank, qkv_projections
from editors.training.losses import LOCALITY, ROLES
from editors.training.run import TrainingJob

QUICK = {"best_by": "loss", "optimizer": "adam",
         "steps": 6, "batch_size": 2, "rank": 4, "learning_rate": 0.04, "validate_every": 3,
         "save_every": 3, "warmup": 0, "preset": "embedded",
         "template": "Fact: {fact}\nQ: "}  # fmt: skip


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def lte(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("lte")
    return LTE.train(llava, samples(5), out=out, **QUICK), out


@torch.no_grad()
def logits(vlm, request, edit=None):
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    with nullcontext() if edit is None else edit.applied(vlm):
        return vlm.logits(batch)


def lively(vlm, rank=2):
    """Low-rank additions that do something."""
    change = LowRank(vlm, range(vlm.num_layers), rank, 4.0, seed=1)
    for parameter in change.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return change


@torch.no_grad()
def test_low_rank_additions_are_additions_to_the_weights(different_vlm):
    change = lively(different_vlm)
    request = samples(1)[0].request
    batch = different_vlm.encode([request.image], [request.prompt])
    plain = different_vlm.logits(batch)
    with change.applied(different_vlm):
        found = different_vlm.logits(batch)
    linears = qkv_projections(different_vlm, change.layers)
    assert len(linears) == 3 * different_vlm.num_layers
    before = {key: linear.weight.data for key, linear in linears.items()}
    for key, linear in linears.items():
        part = change.parts[key]
        linear.weight.data = linear.weight.data + 2.0 * part["up"].weight @ part["down"].weight
    written = different_vlm.logits(batch)
    for key, linear in linears.items():
        linear.weight.data = before[key]
    assert torch.allclose(found, written, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert torch.equal(different_vlm.logits(batch), plain)


@pytest.mark.parametrize("parameters", ["low_rank", "all"])
def test_untrained_it_is_the_plain_model_behind_the_text(llava, tmp_path, parameters):
    quick = {**QUICK, "steps": 0, "parameters": parameters}
    editor = LTE.train(llava, samples(3), out=tmp_path, **quick)
    request, other = samples(2)[0].request, samples(2)[1].visual_locality[0]
    text = f"Fact: {fact_of(request)}\nQ: "
    edit = editor.with_gate(None).edit(llava, request)
    for asked in (request, other):
        plain = logits(llava, asked, PromptEdit((text,)))
        assert torch.equal(logits(llava, asked, edit), plain)
        assert not torch.allclose(logits(llava, asked), plain, atol=1e-2)


def test_training_lowers_the_loss_and_an_edit_moves_the_answer(llava, lte):
    losses = [record["loss"] for record in lte[0].trained["curve"]]
    assert min(losses) < 0.9 * losses[0]
    request = samples(1)[0].request
    batch = llava.encode([request.image], [request.prompt], [request.target])
    asked = batch.labels != -100

    def said(edit):
        found = logits(llava, request, edit)[asked].log_softmax(-1)
        return found.gather(1, batch.labels[asked][:, None]).sum()

    edit = lte[0].with_gate(None).edit(llava, request)
    assert said(edit) > said(edit.prompt) + 1
    assert edit.num_bytes == len(edit.prompt.texts[0])


def test_all_parameters_can_be_trained_as_well_and_the_model_keeps_its_own(llava, tmp_path):
    before = Checksum.of(llava.model)
    quick = {**QUICK, "steps": 4, "validate_every": 2, "learning_rate": 1e-3, "parameters": "all"}
    editor = LTE.train(llava, samples(3), out=tmp_path, **quick)
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < losses[0] and not before.changes(Checksum.of(llava.model))
    request = samples(1)[0].request
    own, loaded = editor.edit(llava, request), LTE.load(tmp_path, llava).edit(llava, request)
    assert torch.equal(logits(llava, request, own), logits(llava, request, loaded))
    with own.applied(llava):
        changed = before.changes(Checksum.of(llava.model))
    assert changed and all(".layers." in name for name in changed)
    assert not before.changes(Checksum.of(llava.model))


def test_the_model_is_what_it_was_after_the_context_and_after_an_error(llava, lte):
    before, request = Checksum.of(llava.model), samples(1)[0].request
    plain = logits(llava, request)
    edit = lte[0].edit(llava, request)
    with edit.applied(llava):
        assert before.changes(Checksum.of(llava.model))  # hooks
    with pytest.raises(RuntimeError, match="planted"), edit.applied(llava):
        raise RuntimeError("planted")
    assert not before.changes(Checksum.of(llava.model))
    assert torch.equal(logits(llava, request), plain)
    evaluate(llava, lte[0], samples(1), ("paper", "generate"))  # checks the same


def test_locality_is_taught_with_and_without_the_text_against_the_original(llava, lte):
    some = samples(5)
    job = TrainingJob("lte", llava, lte[0].config, some[:4], Path("unused"), some[4:])
    with torch.no_grad():
        made = LTE.objective(job, lte[0].change)
        tokens = made.tokens(made.data, [1])
    sample = some[1]
    for role in ("request", "text_locality"):
        at = tokens["roles"] == ROLES.index(role)
        (asked,) = [sample.request] if role == "request" else sample.text_locality
        labels = llava.encode([asked.image], [asked.prompt], [asked.target]).labels
        gold = labels[labels != -100]
        times = 2 if role in LOCALITY else 1
        assert torch.equal(tokens["labels"][at], gold.repeat(times))
        clean = logits(llava, asked)[labels != -100]
        unedited = clean if role in LOCALITY else torch.full_like(clean, torch.nan)
        close = {"atol": 1e-4, "equal_nan": True}  # the request is compared with nothing
        assert torch.allclose(tokens["clean"][at], unedited.repeat(times, 1), **close)
        edit = lte[0].with_gate(None).edit(llava, sample.request)
        behind = logits(llava, asked, edit)[labels != -100]
        assert torch.allclose(tokens["logits"][at][: len(gold)], behind, atol=1e-3)
        if times == 2:
            with edit.change.applied(llava):
                without = logits(llava, asked)[labels != -100]
            assert torch.allclose(tokens["logits"][at][len(gold) :], without, atol=1e-3)


def test_several_edits_are_told_apart_and_far_questions_get_no_text(llava, lte):
    editor = lte[0]
    first, second = samples(5)[0].request, samples(5)[1].request
    edits = [editor.edit(llava, r) for r in (first, second)]
    both = editor.merge(edits)
    select = both.prompt.select
    assert torch.equal(select.keys, torch.cat([e.prompt.select.keys for e in edits]))
    with editor.change.applied(llava):
        for request in (first, second):
            asked = editor.encoder([request.prompt])
            assert torch.equal(select.encoder([request.prompt]), asked)
            scores = (asked @ select.keys.T)[0]
            wanted = int(scores.argmax()) if scores.max() >= editor.threshold else None
            if wanted is not None:
                alone = logits(llava, request, edits[wanted].prompt)
                assert torch.allclose(logits(llava, request, both.prompt), alone, atol=1e-3)
    texts = sum(len(e.prompt.texts[0].encode()) for e in edits)
    assert both.num_bytes == texts + select.num_bytes == sum(e.num_bytes for e in edits)
    far = editor.merge(edits)
    object.__setattr__(far.prompt.select, "threshold", 1.1)
    with editor.change.applied(llava):
        without = logits(llava, first)
    assert torch.equal(logits(llava, first, far), without)


def test_one_edit_is_retrieved_too_unless_a_gate_decides(llava, lte):
    editor, (one, other) = lte[0], [sample.request for sample in samples(2)]
    edit = editor.edit(llava, one)
    assert len(edit.prompt.texts) == 1 and edit.prompt.select.threshold == editor.threshold
    always = editor.with_gate(None)
    assert always.edit(llava, one).prompt.select is None
    assert (gate_name(editor), gate_name(always)) == ("retrieval", "ungated")
    with editor.change.applied(llava):
        plain, behind = logits(llava, other), logits(llava, other, always.edit(llava, one).prompt)
    for threshold, wanted in ((-1.0, behind), (1.1, plain)):
        retrieving = replace(editor, threshold=threshold).edit(llava, one)
        assert torch.allclose(logits(llava, other, retrieving), wanted, atol=1e-3)
    assert not torch.allclose(plain, behind, atol=1e-2)
    for threshold in (-1.0, 1.1):  # a gate that is open for all, and one that is for none
        gated = gated_editor.behind(editor, CosineGate(0, threshold)).edit(llava, one)
        found, text = logits(llava, other, gated), logits(llava, other, always.edit(llava, one))
        assert torch.equal(found, text if threshold < 0 else logits(llava, other))


def test_what_is_saved_is_what_is_loaded(llava, lte):
    editor, out = lte
    loaded, request = LTE.load(out, llava), samples(1)[0].request
    one, other = (e.edit(llava, request) for e in (editor, loaded))
    assert torch.equal(logits(llava, request, one), logits(llava, request, other))
    assert loaded.threshold == editor.threshold and loaded.config == editor.config
    pairs = [e.merge([e.edit(llava, s.request) for s in samples(3)]) for e in (editor, loaded)]
    assert torch.equal(*(pair.prompt.select.keys for pair in pairs))
    (out / "change.safetensors").rename(out / "gone")
    with pytest.raises(SetupError, match="incomplete"):
        LTE.load(out, llava)
    (out / "gone").rename(out / "change.safetensors")


def test_a_finished_training_is_taken_up_as_it_is_and_another_one_refused(llava, lte, tmp_path):
    for name in ("last.safetensors", "best.safetensors"):
        (tmp_path / name).write_bytes((lte[1] / name).read_bytes())
    done = LTE.train(llava, samples(5), out=tmp_path, **QUICK)  # nothing is left to do
    for name, value in lte[0].change.state_dict().items():
        assert torch.equal(value, done.change.state_dict()[name]), name
    with pytest.raises(AttribError, match="holds another training"):
        LTE.train(llava, samples(5), out=tmp_path, **{**QUICK, "rank": 5})


@pytest.mark.parametrize(("given", "message"), [
    ({"layers": [9]}, "there is no layer 9"),
    ({"gate": "learned"}, "takes no gate"),
    ({"speed": 3}, "no setting 'speed'; there are alpha"),
    ({"template": "{facts}"}, "must have one '{fact}', where the edit goes"),
    ({"parameters": "some"}, "expected 'low_rank' or 'all'"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(llava, tmp_path, given, message):
    with pytest.raises(AttribError, match=message):
        LTE.train(llava, samples(3), out=tmp_path, **{**QUICK, **given})
