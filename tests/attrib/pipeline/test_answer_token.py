"""A later token of the model's own answer is analysed as if the earlier ones were prompt."""

import pytest
import torch
from conftest import examples, tiny_vlm

import attrib
from attrib.analyses.answers import LONGEST_ANSWER, answer_of
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError, RowError
from attrib.model import continuation
from attrib.model.continuation import after_answer, continued, generated_tokens

NUMBER = 2


def samples():
    images, prompts = examples()
    pairs = zip(images, prompts, strict=True)
    return [EditSample(f"s{i}", EditRequest(image, p, "x")) for i, (image, p) in enumerate(pairs)]


@pytest.fixture(scope="module", params=["llava", "blip2_opt", "qwen2_vl"])
def vlm(request):
    return tiny_vlm(request.param)


def encoded(vlm):
    images, prompts = examples()
    return vlm.encode(images, prompts)


def test_prompts_end_where_the_model_predicts_that_token(vlm, monkeypatch):
    monkeypatch.setattr(continuation, "end_tokens", lambda _: set())
    longer = after_answer(vlm, encoded(vlm), NUMBER)
    images, prompts = examples()
    assert longer.labels is None
    compared = 0
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        alone = vlm.encode([image], [prompt])
        tokens = generated_tokens(vlm, alone, NUMBER + 1)
        if len(tokens) <= NUMBER:
            continue
        last = longer["last"][i].nonzero().item()
        assert (
            longer.inputs["input_ids"][i, last - NUMBER + 1 : last + 1].tolist() == tokens[:NUMBER]
        )
        compared += 1
        whole = continued(vlm, alone, tokens[:NUMBER])
        at = whole["target"][0].nonzero()[-1].item()
        torch.testing.assert_close(
            vlm.last_logits(longer)[i], vlm.logits(whole)[0, at], rtol=1e-4, atol=1e-5
        )
    assert compared


def test_contributions_of_it_sum_to_its_logit(vlm, monkeypatch):
    monkeypatch.setattr(continuation, "end_tokens", lambda _: set())
    found = attrib.run("contributions", vlm, samples(), answer_token=NUMBER, norm="frozen")
    first = attrib.run("contributions", vlm, samples(), norm="frozen")
    longer = after_answer(vlm, encoded(vlm).named([s.id for s in samples()]), NUMBER)
    wanted = attrib.contributions(vlm, longer, "argmax", "frozen")
    values = found.matrix(["layer", "module"])[1].reshape(wanted.shape)
    torch.testing.assert_close(torch.tensor(values).float(), wanted, rtol=1e-3, atol=1e-4)
    assert not found.frame["value"].equals(first.frame["value"])


def test_an_answer_that_ends_before_is_set_aside(vlm, monkeypatch):
    batch = encoded(vlm)
    first = set(vlm.last_logits(batch).argmax(-1).tolist())
    monkeypatch.setattr(continuation, "end_tokens", lambda _: first)
    with pytest.raises(RowError, match="answer has 0 tokens, none of number 1"):
        after_answer(vlm, batch, 1)


def test_it_is_not_a_token_of_the_data(vlm):
    with pytest.raises(AttribError, match="own answer"):
        attrib.run("contributions", vlm, samples(), answer_token=1, key="gold")


@pytest.mark.parametrize("number", [0, NUMBER])
def test_an_answer_is_what_the_model_generates_with_the_probability_of_its_token(vlm, number):
    images, prompts = examples()
    batch = vlm.encode(images[:1], prompts[:1])
    tokens = generated_tokens(vlm, batch, LONGEST_ANSWER + number)
    if len(tokens) <= number:
        pytest.skip("a short answer")
    found = answer_of(vlm, batch, number)
    assert found.text == vlm.generate(batch, LONGEST_ANSWER + number)[0]
    assert found.token == vlm.tokenizer.decode([tokens[number]])
    whole = continued(vlm, batch, tokens[:number])
    at = whole["last"][0].nonzero().item() + number
    probability = vlm.logits(whole)[0, at].softmax(-1)[tokens[number]].item()
    assert found.probability == pytest.approx(probability, rel=1e-4)
    assert f"token {number} of it" in str(found)
