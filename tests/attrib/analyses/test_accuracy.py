"""Accuracy of the samples: whole answers, judged by what a pass over each of them alone says."""

from functools import partial

import pandas as pd
import pytest
import torch
from conftest import picture, tiny_vlm

import attrib
from attrib.analyses.accuracy import answers_table, right_answers
from attrib.analyses.contributions import measure_contributions
from attrib.data import EditRequest, EditSample, load
from attrib.metrics import exact_match
from attrib.model.answers import target_ids, without_blank
from attrib.pipeline.source import add_answer_prefix
from attrib.results import Result
from attrib.selection.accuracy import WARNING, accuracy_of
from attrib.stats import wilson

PROMPTS = ("What is it?", "Where is the cat now?", "Is it big?", "What colour is it?")


def encode(vlm, samples):
    requests = [sample.request for sample in samples]
    return vlm.encode([r.image for r in requests], [r.prompt for r in requests])


def table(vlm, answers):
    """The table of samples with these answers, and the samples."""
    samples = [
        EditSample(f"e{i}", EditRequest(picture(60, 40, seed=i), PROMPTS[i], answer))
        for i, answer in enumerate(answers)
    ]
    batch = encode(vlm, samples)
    first = vlm.last_logits(batch).argmax(-1)
    return answers_table(vlm, samples, first, right_answers(samples)), samples


@pytest.mark.parametrize("name", ["llava", "blip2_opt", "gemma3"])
def test_answers_are_judged_as_a_pass_over_each_alone_says(name):
    vlm = tiny_vlm(name)
    answers = ["yes", "a small red dog", "no", "blue and green"]
    found, samples = table(vlm, answers)
    for sample, row in zip(samples, found.to_dict("records"), strict=True):
        request = sample.request
        batch = vlm.encode([request.image], [request.prompt], [request.target])
        asked = batch.labels[0] != -100
        wanted = without_blank(vlm.tokenizer, batch.labels[0][asked].tolist())
        likeliest = vlm.logits(batch)[0][asked].argmax(-1).tolist()[-len(wanted) :]
        assert row["value"] == (likeliest == wanted) and row["example"] == sample.id


@pytest.fixture(scope="module")
def scenes():
    """The embedded model, and questions that it answers well."""
    return attrib.load("tiny-llava"), load("scenes-vqa", "test", limit=24)


def test_short_answers_are_right_where_the_generated_text_is(scenes):
    vlm, data = scenes
    truths = right_answers(data)
    batch = encode(vlm, data)
    found = answers_table(vlm, data, vlm.last_logits(batch).argmax(-1), truths)
    said = exact_match(vlm.generate(batch), [truths[s.id] for s in data]).float().tolist()
    assert found["value"].tolist() == said and sum(said) > len(data) / 2
    wrong = {s.id: s.request.target for s in data}  # those after the edits
    found = answers_table(vlm, data, vlm.last_logits(batch).argmax(-1), wrong)
    assert found["value"].sum() < len(data) / 4


def test_a_space_token_before_the_answer_is_not_the_answer(monkeypatch):
    vlm = tiny_vlm("llava")
    samples = [EditSample("a", EditRequest(picture(60, 40), PROMPTS[0], "yes"))]
    ids = target_ids(vlm.tokenizer, PROMPTS[0], "yes")
    assert not vlm.tokenizer.decode(ids[:1]).strip() and len(ids) == 4

    def judged(*likeliest):
        planted = torch.nn.functional.one_hot(torch.tensor(likeliest), 300).float()
        monkeypatch.setattr(type(vlm), "unembed_float32", lambda *_given: planted)
        first = torch.tensor(likeliest[:1])
        return answers_table(vlm, samples, first, {"a": "yes"})["value"].item()

    blank, *letters = ids
    assert judged(blank, *letters) == judged(letters[0], *letters) == 1
    assert judged(blank, *letters[:2], letters[0]) == judged(blank, *[letters[0]] * 3) == 0


def test_no_pass_is_made_where_the_first_token_decides(monkeypatch):
    vlm = tiny_vlm("llava")
    samples = [EditSample(f"e{i}", EditRequest(None, PROMPTS[0], "x")) for i in range(2)]
    monkeypatch.setattr(type(vlm), "_run", pytest.fail)
    one, two = (vlm.tokenizer(text)["input_ids"][-1] for text in "ab")
    first = torch.tensor([one, two])
    monkeypatch.setattr("attrib.analyses.accuracy.target_ids", lambda *_given: [one])
    assert answers_table(vlm, samples, first, {"e0": "a", "e1": "a"})["value"].tolist() == [1, 0]
    monkeypatch.setattr("attrib.analyses.accuracy.target_ids", lambda *_given: [one, two])
    found = answers_table(vlm, samples[1:], first[1:], {"e1": "ab"})
    assert found["value"].tolist() == [0]


def test_contributions_are_the_same_with_and_without_answers():
    vlm = tiny_vlm("llava")
    _, samples = table(vlm, ["yes", "a dog", "no", "blue"])
    measure = partial(measure_contributions, vlm, encode(vlm, samples), samples, norm="none")
    with_answers = measure(key="argmax", truths=right_answers(samples))
    assert with_answers["contributions"].equals(measure(key="argmax")["contributions"])
    assert set(with_answers) == {"contributions", "answers"}
    assert set(measure(key="gold", truths={"e0": "yes"})) == {"contributions"}


def test_an_answer_that_cannot_follow_its_prompt_is_not_judged_and_the_others_are():
    vlm = tiny_vlm("llava")
    found, _ = table(vlm, ["yes", "a <image> dog", "no", ""])
    assert found["example"].tolist() == ["e0", "e2"]  # a placeholder in e1, nothing in e3
    assert set(found.columns) == {"example", "answer", "truth", "value"}
    longer, _ = table(vlm, ["word " * 5000, "a small dog", "no", "yes"])
    assert longer["example"].tolist() == ["e1", "e2", "e3"]


def test_the_right_answer_of_a_scene_is_not_the_edit_s():
    data = load("scenes-vqa", "test", limit=5)
    assert right_answers(data) == {s.id: s.meta["pred"] for s in data}
    assert right_answers(list(data)) == {s.id: s.request.target for s in data}
    captions = add_answer_prefix(load("scenes-captions", "test", limit=20), 1)
    truths = right_answers(captions)
    for sample in captions:
        fed, first = sample.request.prompt.split()[-1], sample.meta["pred"].split()[0]
        assert (sample.id in truths) == (fed == first)
        assert sample.id not in truths or f"{fed} {truths[sample.id]}" == sample.meta["pred"]
    assert len(truths) > len(captions) / 2
    # The second word is the colour, which the edit changes: the right caption cannot follow it.
    assert not right_answers(add_answer_prefix(load("scenes-captions", "test", limit=20), 2))


def test_accuracy_has_wilson_s_interval_and_a_warning_below_one_half():
    def of(*values):
        rows = pd.DataFrame({"example": [f"e{i}" for i in range(len(values))], "value": values})
        main = Result("contributions", rows, {}, tables={"answers": Result("answers", rows, {})})
        return accuracy_of([main])

    found = of(1, 1, 1, 0)
    assert (found["right"], found["examples"], found["share"]) == (3, 4, 0.75)
    assert (found["low"], found["high"]) == wilson(3, 4) and found["warning"] == ""
    assert of(1, 0)["warning"] == "" and of(1, 0, 0)["warning"] == WARNING
    empty = pd.DataFrame({"example": [], "value": []})
    assert accuracy_of([Result("contributions", empty, {})]) == {}
