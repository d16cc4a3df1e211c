"""One pass for teacher-forced and greedy answers: the same texts as generating from the prompts."""

import pytest
import torch
from conftest import ARCHITECTURES, picture, tiny_vlm

from attrib.model import forced_pass
from attrib.model.batch import Batch
from attrib.model.forced_pass import (
    VERIFIED,
    ForcedPass,
    answer_logits,
    is_supported,
    until_end,
    without_target,
)

PROMPTS = ["What is it?", "How many boxes are there?", "Where?", "Who wrote Emma?"]


def batch_of(vlm, targets):
    images = [picture(seed=0), picture(50, 50, seed=1), picture(seed=0), None]
    return vlm.encode(images, PROMPTS, targets)


def own_answers(vlm, batch, tokens):
    """What the model says, as text that encodes to the same tokens, or None."""
    return vlm.generate(without_target(vlm, batch), tokens)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_texts_are_those_of_generate_wherever_a_model_is_used_like_this(name):
    vlm = tiny_vlm(name)
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    before = dict(vlm.verified)
    vlm.verified.pop(VERIFIED, None)
    supported = is_supported(vlm, batch)
    vlm.verified.update(before)
    if name in ("llava", "llava_next", "internvl", "smolvlm"):
        assert supported
    if supported:
        for whole in (True, False):
            assert ForcedPass.run(vlm, batch, whole=whole).texts(7) == own_answers(vlm, batch, 7)
        assert torch.equal(ForcedPass.run(vlm, batch, whole=True).logits, vlm.logits(batch))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_answers_are_those_of_the_last_positions(name):
    vlm = tiny_vlm(name)
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    kept, whole = answer_logits(vlm, batch), vlm.logits(batch)
    width = kept.shape[1]
    torch.testing.assert_close(kept, whole[:, -width:], atol=1e-5, rtol=1e-4)
    assert width > batch["target"].sum(1).max()  # the token before the answer, too
    if name in ("llava", "llava_next", "internvl", "smolvlm"):
        assert width < whole.shape[1]


def test_a_row_goes_on_where_it_leaves_its_target():
    """Targets that agree with the model by 0, some or all of their tokens."""
    vlm = tiny_vlm("llava")
    said = vlm.generate(without_target(vlm, batch_of(vlm, ["x"] * 4)), 6)
    targets = [text if text.isascii() and text.strip() else "x" for text in said]
    for some in (
        targets,
        [f"{text} zz" for text in targets],
        [text[:2] or "x" for text in targets],
    ):
        batch = batch_of(vlm, some)
        for limit in (1, 2, 9):
            wanted = own_answers(vlm, batch, limit)
            assert ForcedPass.run(vlm, batch).texts(limit) == wanted


def test_an_answer_ends_at_the_first_end_token(monkeypatch):
    vlm = tiny_vlm("llava")
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    whole = [vlm.tokenizer(text)["input_ids"] for text in own_answers(vlm, batch, 5)]
    end = next(ids[-1] for ids in whole if len(ids) > 1)
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", end)
    assert ForcedPass.run(vlm, batch).texts(5) == own_answers(vlm, batch, 5)
    assert until_end([4, 2, 7, 2], {2, 9}) == [4, 2] and until_end([4, 7], {2}) == [4, 7]


def test_models_and_batches_that_are_asked_in_another_way_use_generate(monkeypatch):
    vlm = tiny_vlm("llava")
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    assert is_supported(vlm, batch)
    right = vlm.encode([None, None], ["a", "b c d"], ["x", "y"], padding_side="right")
    assert not is_supported(vlm, right)
    with vlm.rewrite_prompts(lambda one: one):
        assert not is_supported(vlm, batch)
    monkeypatch.delitem(vlm.verified, VERIFIED)
    monkeypatch.setattr(forced_pass, "_close", lambda _one, _other: False)
    assert not is_supported(vlm, batch) and vlm.verified[VERIFIED] is False


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_some_rows_of_a_batch_are_those_examples(name):
    vlm = tiny_vlm(name)
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    whole = vlm.logits(batch)
    for rows in ([0, 2], [1, 3], [2]):
        some = batch.only(rows)
        if some is None:
            continue
        assert some.prompts == tuple(PROMPTS[i] for i in rows)
        assert torch.equal(some.labels, batch.labels[rows])
        real = some.inputs["attention_mask"].bool()
        assert torch.allclose(vlm.logits(some)[real], whole[rows][real], atol=1e-4)


def test_rows_are_not_taken_where_pictures_cannot_be_told_apart():
    vlm = tiny_vlm("llava")
    batch = batch_of(vlm, ["red", "no", "at the top", "she"])
    assert batch.only([1]) is not None
    assert batch.only([3]) is None  # no picture is left of those that were processed
    two = vlm.encode([[picture(), picture(seed=1)], None], ["a", "b"])
    assert two.only([0]) is None
    told = Batch({**batch.inputs, "extra": torch.zeros(9)}, batch.spans, batch.pictures)
    assert told.only([0]) is None
