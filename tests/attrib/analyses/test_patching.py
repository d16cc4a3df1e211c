"""Patching: exact against writes by hand, planted truths, and nothing where nothing is put in."""

import copy
from contextlib import contextmanager
from inspect import unwrap  # the type checks of test runs would speak before our own messages

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from PIL import Image
from torch.testing import assert_close

from attrib.analyses.patching import (
    clean_runs,
    patched_logits,
    patching,
    patching_difference,
    patching_of,
    patching_parts,
)
from attrib.analyses.prompts import SPANS, span_positions
from attrib.errors import AttribError
from attrib.forward.hooks import read, write

COLORS = ("red", "blue", "white", "black", "lime", "yellow")
READER = 2  # the layer in which a planted answer passes from the image to the last token


def pictures(num=3):
    """Ragged prompts, their pictures and others as large; every third example is text alone."""
    images, prompts = examples(num)
    ones, others = (
        [
            image and Image.new("RGB", image.size, (COLORS * 2)[i])
            for i, image in enumerate(images, k)
        ]
        for k in (0, 4)
    )
    return prompts, ones, others


def pair(vlm, num=3, **settings):
    """The same prompts with two pictures each."""
    prompts, *both = pictures(num)
    return tuple(vlm.encode(images, prompts, **settings) for images in both)


def seeing(vlm, num=4):
    """Pairs that all have pictures."""
    prompts = [f"What is {'very ' * (i % 3)}red?" for i in range(num)]
    own = [Image.new("RGB", (60, 40), COLORS[i]) for i in range(num)]
    other = [Image.new("RGB", (60, 40), COLORS[i + 1]) for i in range(num)]
    return vlm.encode(own, prompts), vlm.encode(other, prompts)


def by_hand(vlm, batch, other, span):
    """Logits behind the prompt of a whole pass per layer, with the other's states written in."""
    with read(vlm) as theirs:
        vlm.logits(other)
    at, logits = span_positions(batch, span), []
    for layer in range(vlm.num_layers):
        with write(vlm, layer, lambda _, to=theirs[layer]: to, at):
            logits.append(vlm.logits(batch)[batch["last"]])
    return torch.stack(logits, 1)


def patched(vlm, batch, other, span):
    runs = clean_runs(vlm, batch, other)
    return torch.stack(list(patched_logits(vlm, batch, runs, span)), 1)


@contextmanager
def planted_answer(vlm, batch, other, tokens=(5, 70), size=1e3):
    """In layer READER the last token is told one of two answers, by what the image's tokens are."""
    at, last = batch["visual"], batch["last"].float()[..., None]

    def seen(h):
        return torch.where(at[..., None], h, 0).sum(1)

    with read(vlm, [READER]) as own:
        vlm.logits(batch)
    with read(vlm, [READER]) as theirs:
        vlm.logits(other)
    one, two = seen(own[READER]), seen(theirs[READER])
    answers = vlm.model.get_output_embeddings().weight[list(tokens)]

    def tell(_module, _args, h):
        nearer = (seen(h) - one).norm(dim=1) < (seen(h) - two).norm(dim=1)
        said = torch.where(nearer[:, None], answers[0], answers[1])
        return h + last * size * said[:, None]

    handle = vlm.layers[READER].register_forward_hook(tell)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("span", SPANS)
def test_patching_equals_writing_the_other_states(different_vlm, span):
    batch, other = pair(different_vlm)
    expected = by_hand(different_vlm, batch, other, span)
    assert_close(patched(different_vlm, batch, other, span), expected, atol=1e-4, rtol=1e-5)
    parts = patching_parts(different_vlm, batch, other, span)
    assert torch.equal(parts.answer, expected.argmax(-1))


def test_patching_an_image_with_itself_changes_no_bit(different_vlm):
    batch, other = pair(different_vlm)
    clean = different_vlm.logits(batch)
    for span in SPANS:
        runs = clean_runs(different_vlm, batch, batch)
        for logits in patched_logits(different_vlm, batch, runs, span):
            assert torch.equal(logits.argmax(-1), clean[batch["last"]].argmax(-1))
            assert torch.equal(logits, next(patched_logits(different_vlm, batch, runs, "last")))
        assert patching(different_vlm, batch, batch, span).isnan().all()  # nothing to follow
    assert not torch.equal(clean, different_vlm.logits(other))


def test_after_the_last_layer_only_the_last_token_matters(different_vlm):
    batch, other = pair(different_vlm)
    told = different_vlm.logits(batch)[batch["last"]].argmax(-1)
    theirs = different_vlm.logits(other)[other["last"]].argmax(-1)
    visual, last = (
        patching_parts(different_vlm, batch, other, span) for span in ("visual", "last")
    )
    assert torch.equal(visual.answer[:, -1], told) and torch.equal(visual.own, told)
    assert torch.equal(last.answer[:, -1], theirs) and torch.equal(last.other, theirs)
    differ = told != theirs
    assert not differ[1] and visual.follows[1].isnan().all()  # text alone: nothing to follow
    assert (visual.difference[differ, -1] == 0).all() and (last.difference[differ, -1] == 1).all()


def test_patching_the_whole_prompt_gives_the_other_run(different_vlm):
    batch, other = pair(different_vlm)
    logits = patched(different_vlm, batch, other, "all")
    theirs = different_vlm.logits(other)[other["last"]][:, None].expand_as(logits)
    if different_vlm.name == "qwen3_vl":  # the own image is fed in again after layers 0 and 1
        assert not torch.allclose(logits[:, 0], theirs[:, 0], atol=1e-2)
        logits, theirs = logits[:, 2:], theirs[:, 2:]
    assert_close(logits, theirs, atol=1e-4, rtol=1e-5)


def test_a_planted_answer_moves_in_its_layer(vlm):
    batch, other = seeing(vlm)
    before = torch.arange(vlm.num_layers) < READER
    with planted_answer(vlm, batch, other):
        for one, two in ((batch, other), (other, batch)):  # and the other way round
            visual, last = (patching_parts(vlm, one, two, span) for span in ("visual", "last"))
            assert (visual.own != visual.other).all()
            assert torch.equal(visual.follows, before.float().expand(4, -1))
            assert torch.equal(last.follows, (~before).float().expand(4, -1))
            assert torch.equal(visual.stays, 1 - visual.follows)
            assert (visual.neither == 0).all()
            assert_close(visual.difference, visual.follows, atol=0.1, rtol=0)
            assert torch.equal(patching(vlm, one, two, "text"), last.follows)
    assert not torch.equal(patching(vlm, batch, other), before.float().expand(4, -1))


def test_a_third_answer_is_neither(vlm):
    batch, other = seeing(vlm, 2)
    parts = patching_parts(vlm, batch, other)
    third = torch.full_like(parts.answer, 7)
    told = type(parts).of(torch.tensor([1, 1]), torch.tensor([2, 1]), third, parts.difference)
    assert (told.follows[0] == 0).all() and (told.stays[0] == 0).all()
    assert (told.neither[0] == 1).all() and told.neither[1].isnan().all()


def test_the_difference_is_that_of_the_logits(vlm):
    batch, other = seeing(vlm)
    parts = patching_parts(vlm, batch, other)
    own, theirs = (vlm.logits(b)[b["last"]] for b in (batch, other))
    logits = by_hand(vlm, batch, other, "visual")
    for i in range(batch.size):
        first, second = parts.own[i], parts.other[i]
        gap = (logits[i, :, second] - logits[i, :, first]) - (own[i, second] - own[i, first])
        whole = (theirs[i, second] - theirs[i, first]) - (own[i, second] - own[i, first])
        expected = gap / whole if first != second else torch.full_like(gap, torch.nan)
        assert_close(parts.difference[i], expected, atol=1e-3, rtol=1e-3, equal_nan=True)
    assert torch.equal(patching_difference(vlm, batch, other).isnan(), parts.difference.isnan())
    assert parts.difference.isfinite().any()


def test_pairs_do_not_depend_on_the_batch_they_are_in(vlm):
    prompts, images, others = pictures(6)
    together = patching_parts(vlm, *pair(vlm, 6))
    for i in range(6):
        one, two = (vlm.encode([both[i]], [prompts[i]]) for both in (images, others))
        alone = patching_parts(vlm, one, two)
        assert torch.equal(together.follows[i].nan_to_num(9), alone.follows[0].nan_to_num(9))
        assert torch.equal(together.answer[i], alone.answer[0])
    assert together.follows.isfinite().any()


def test_targets_and_padding_on_the_right_change_nothing(vlm):
    batch, other = pair(vlm)
    plain = patching_parts(vlm, batch, other)
    right = patching_parts(vlm, *pair(vlm, padding_side="right"))
    forced = patching_parts(vlm, *pair(vlm, targets=["red", "blue", "Jane Austen"]))
    assert torch.equal(plain.answer, right.answer) and torch.equal(plain.answer, forced.answer)


def test_several_spans_share_the_clean_runs(vlm):
    batch, other = pair(vlm)
    passes = []
    handle = vlm.layers[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        runs = clean_runs(vlm, batch, other)
        several = [patching_of(vlm, batch, runs, span) for span in SPANS]
    finally:
        handle.remove()
    assert len(passes) == 2  # layer 0 is before every patch
    for span, parts in zip(SPANS, several, strict=True):
        assert torch.equal(parts.answer, patching_parts(vlm, batch, other, span).answer)


def test_nan_logits_are_no_answer():
    vlm = tiny_vlm("llava")
    broken = type(vlm)(copy.deepcopy(vlm.model), vlm.processor)
    broken.layers[2].mlp.down_proj.weight.fill_(torch.nan)
    parts = patching_parts(broken, *pair(vlm))
    assert (parts.own == -1).all() and (parts.answer == -1).all()
    assert parts.follows.isnan().all() and parts.difference.isnan().all()


@pytest.mark.parametrize(
    ("name", "size", "words", "told"),
    [
        ("llava", (60, 40), ["What?", "Why?"], "row 1: the prompts differ"),
        ("qwen2_vl", (60, 100), ["What?", "Who?"], "row 1: .* visual tokens and .* in the other"),
        ("qwen2_vl", (28, 112), ["What?", "Who?"], "row 1: visual tokens in grids of"),
    ],
)
def test_rows_that_are_no_pair_are_refused_by_number(name, size, words, told):
    vlm = tiny_vlm(name)
    plain = picture(112, 28) if size == (28, 112) else picture()
    batch = vlm.encode([picture(), plain], ["What?", "Who?"])
    other = vlm.encode([picture(seed=7), picture(*size, seed=8)], words)
    with pytest.raises(AttribError, match=told):
        patching(vlm, batch, other)


def test_batches_that_are_no_pairs_are_refused(vlm):
    batch, other = pair(vlm)
    with pytest.raises(AttribError, match="3 rows and 2 others"):
        patching(vlm, batch, pair(vlm, 2)[1])
    with pytest.raises(AttribError, match="padded differently"):
        patching(vlm, batch, pair(vlm, padding_side="right")[1])
    with pytest.raises(AttribError, match="span: expected one of visual, text, last, all"):
        unwrap(span_positions)(other, "picture")


def test_one_object_is_the_tensor_of_shares_and_holds_every_statistic(vlm):
    result = patching(vlm, *seeing(vlm))
    assert isinstance(result, torch.Tensor) and result.shape == (4, vlm.num_layers)
    assert_close(result.follows, result + 0, equal_nan=True)
    assert type(result.mean()) is type(result.follows) is torch.Tensor
    assert type(result[:2] + 1) is torch.Tensor and result.numpy().shape == result.shape
    shares = result.follows + result.stays + result.neither
    assert torch.equal(shares.isnan(), result.isnan()) and (shares.nan_to_num(1) == 1).all()
    again = patching_difference(vlm, *seeing(vlm))
    assert torch.equal(again.nan_to_num(), result.difference.nan_to_num())
