"""Gates are learned and calibrated on training edits: planted distinctions, stated rates."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import picture, tiny_vlm
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.stats import roc
from editors.gating.classifier import NEVER
from editors.gating.features import COVERED, REQUEST, GateReader, RelatedInput
from editors.gating.gates import LearnedGate
from editors.gating.pairs import InputStates, sample_pairs
from editors.gating.threshold import gate_table, score_table
from editors.gating.training import GateTraining, fit_cosine_gate, fit_net, split, train_gate

WIDTH, PATCHES, SAME, OTHER, TEXT = 16, 4, "same_kind", "other_image", "text_locality"
SETTINGS = GateTraining(steps=150, batch_size=16, width=16, pools=2, patch=8)
POSITIVE = COVERED[1:]


def planted(num, seed, told=True):
    """Inputs whose question is one of 12 directions at a random word, and whose image is another.

    A paraphrase has the direction at another word among other noise. If not `told`, words say
    nothing, and only the image is left.
    """
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(0).normal(size=(12, WIDTH)) * 2

    def words(topic):
        x = random.normal(size=(random.integers(3, 7), WIDTH)) * 0.5
        x[random.integers(len(x))] += topics[topic] * told
        return torch.tensor(x).half()

    def picture(scene=None):
        if scene is None:
            return torch.zeros(0, WIDTH).half()
        return torch.tensor(scene + 0.2 * random.normal(size=(PATCHES, WIDTH))).half()

    inputs, states = [], []
    for row in range(num):
        topic, other = random.choice(12, 2, replace=False)
        here, there = random.normal(size=(2, PATCHES, WIDTH))
        texts = [(name, topic, here) for name in COVERED]
        texts += [(SAME, other, here), (OTHER, topic, there), (TEXT, other, None)]
        for relation, about, scene in texts:
            prompt = f"about {about}" + "?" * (relation == POSITIVE[0])
            inputs.append(RelatedInput(row, relation, EditRequest(None, prompt, "x")))
            states.append({"text": words(about), "visual": picture(scene)})
    return InputStates(inputs, states)


def reader():
    return GateReader((0,), WIDTH)


def aucs(net, kept):
    gate = LearnedGate(reader(), net, 0.0)
    scores = held_scores(gate, kept)
    found = {}
    for relation in (SAME, OTHER, TEXT):
        some = scores[scores["relation"].isin([*POSITIVE, relation])]
        positive = some["relation"].isin(POSITIVE).to_numpy()
        found[relation] = roc(some["value"].to_numpy(), positive).auc[0]
    return found


def held_scores(gate, kept):
    encoded = gate.encode(kept.states)
    edits = [s for one, s in zip(kept.inputs, encoded, strict=True) if one.relation == REQUEST]
    return score_table([str(i) for i in range(len(edits))], kept.inputs, encoded, edits, gate)


@pytest.fixture(scope="module")
def told():
    return fit_net(planted(150, seed=1), reader(), SETTINGS)


def test_learning_finds_a_planted_distinction(told):
    kept = planted(60, seed=2)
    found = aucs(told, kept)
    assert all(value > 0.97 for value in found.values()), found
    untrained = aucs(fit_net(planted(150, seed=1), reader(), GateTraining(1)), kept)
    assert untrained[SAME] < 0.9


def test_where_words_tell_nothing_the_image_alone_is_learned():
    net = fit_net(planted(100, 1, told=False), reader(), replace(SETTINGS, steps=60))
    found = aucs(net, planted(100, seed=2, told=False))
    assert found[OTHER] > 0.95 and found[TEXT] == 1
    assert 0.35 < found[SAME] < 0.65


def test_texts_without_an_image_are_told_apart_by_their_words(told):
    kept = planted(60, seed=3)
    no_image = torch.zeros(0, WIDTH).half()
    bare = InputStates(kept.inputs, [{"text": s["text"], "visual": no_image} for s in kept.states])
    assert aucs(told, bare)[SAME] > 0.9


def test_an_image_edit_is_not_served_to_a_text_that_asks_the_same(told):
    kept = planted(60, seed=4)
    gate = LearnedGate(reader(), told, 0.0)
    edits = [s for one, s in zip(kept.inputs, kept.states, strict=True) if one.relation == REQUEST]
    bare = [{"text": s["text"], "visual": s["visual"][:0]} for s in edits]
    own, other = gate.encode(edits), gate.encode(bare)
    assert (gate.scores(own, own).diagonal() > 0).all()
    assert (gate.scores(other, other).diagonal() > 0).all()
    assert (gate.scores(other, own) == NEVER).all() and (gate.scores(own, other) == NEVER).all()


def test_learning_repeats_and_leaves_the_random_state_alone():
    kept, few = planted(20, seed=1), GateTraining(steps=3, batch_size=8, width=8)
    before = torch.get_rng_state()
    one, other = (fit_net(kept, reader(), few).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)
    third = fit_net(kept, reader(), GateTraining(steps=3, batch_size=8, width=8, seed=1))
    assert not torch.equal(one["word.weight"], third.state_dict()["word.weight"])


def test_more_edits_take_more_steps_unless_they_are_given():
    default = GateTraining()
    assert [default.steps_for(num) for num in (5, 800, 2000)] == [600, 600, 1500]
    assert GateTraining(steps=7).steps_for(2000) == 7


def test_a_loss_that_is_no_number_is_named():
    kept = planted(4, seed=1)
    kept.states[0]["text"][:] = torch.nan
    with pytest.raises(AttribError, match="loss is nan at step 0"):
        fit_net(kept, reader(), GateTraining(steps=2))


def test_pairs_say_what_an_edit_covers():
    kept = planted(6, seed=5).select([4, 0, 2])
    assert [one.row for one in kept.inputs] == sorted(one.row for one in kept.inputs)
    pairs = sample_pairs(kept, torch.Generator().manual_seed(0))
    for query, edit, covered, hidden in zip(
        pairs.query, pairs.edit, pairs.covered, pairs.hidden.tolist(), strict=True
    ):
        one, other = kept.inputs[query], kept.inputs[edit]
        if other.relation == TEXT:
            assert covered == (one.request.prompt == other.request.prompt)
        else:
            assert other.relation in COVERED
            assert covered == (one.row == other.row and one.relation in COVERED)
        if hidden:
            assert all(len(kept.states[i]["visual"]) for i in (query, edit))
        if hidden and not covered:
            assert one.request.prompt != other.request.prompt
    assert pairs.hidden.any() and pairs.covered.any() and not pairs.covered.all()


def test_a_gate_is_learned_from_edits_of_a_model_and_from_those_that_are_not_held_out():
    vlm, edits = tiny_vlm("llava"), samples(5)
    settings = GateTraining(steps=4, batch_size=4, held_out=0.4, width=8)
    gate = train_gate(vlm, edits, [0, 1], settings, false_open=0.1)
    assert gate.layers == (0, 1)
    assert gate.record["samples"] == {"learned": 3, "held_out": 2}
    assert gate.record["calibration"]["false_open"] <= 0.1
    again = train_gate(vlm, edits, [0, 1], settings, false_open=0.1)
    assert gate.config() == again.config()
    held = split(5, settings)[1]
    changed = copy.deepcopy(edits)
    for row in held:
        words = changed[row].hard_locality[0].prompt  # batches stay as they are
        changed[row].hard_locality[0] = EditRequest(picture(seed=200 + row), words, "x")
    other = train_gate(vlm, changed, [0, 1], settings, false_open=0.1).tensors()
    assert all(torch.equal(value, other[name]) for name, value in gate.tensors().items())
    for row in set(range(5)) - set(held):
        words = changed[row].hard_locality[0].prompt  # batches stay as they are
        changed[row].hard_locality[0] = EditRequest(picture(seed=200 + row), words, "x")
    third = train_gate(vlm, changed, [0, 1], settings, false_open=0.1).tensors()
    assert not torch.equal(third["net.word.weight"], other["net.word.weight"])


def test_what_cannot_be_learned_from_is_refused():
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match="two or more edits, got 1"):
        train_gate(vlm, samples(1), [0])
    with pytest.raises(AttribError, match="layers 0 to 3"):
        train_gate(vlm, samples(2), [4])
    with pytest.raises(AttribError, match="no edit to evaluate gates on"):
        gate_table(vlm, [], {})


def test_rows_that_cannot_be_encoded_are_set_aside_by_name(caplog):
    """One text that no model can read ends neither the training nor the table of gates."""
    vlm, odd = tiny_vlm("llava"), replace(samples(5)[4], id="odd")
    odd = replace(odd, text_generality=[EditRequest(None, "\ud800", "x")])
    rows, settings = [*samples(4), odd], GateTraining(steps=1, batch_size=4, width=8)
    for gate in (train_gate(vlm, rows, [0], settings), fit_cosine_gate(vlm, rows, 0)):
        table = gate_table(vlm, rows, {"gate": gate})
        assert set(table["n"]) == {4}
    assert caplog.text.count("odd is set aside") == 4
