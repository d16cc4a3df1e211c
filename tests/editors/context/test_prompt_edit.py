"""Text in front of questions: what the prompt with the text written into it says, nothing else."""

import pytest
import torch
from conftest import examples, tiny_vlm

from attrib.errors import AttribError
from attrib.model.forced_pass import without_target
from attrib.model.prompt_rewriting import RewrittenBatch
from editors.context import NO_TEXT, PromptEdit, text_tokens

TEXT = "Fact: it is blue.\nQ: "
TARGETS = ["blue", "Emma", "a red one"]


class By:
    """Selects the given indices."""

    num_bytes = 3

    def __init__(self, *numbers):
        self.numbers, self.asked = list(numbers), []

    def __call__(self, vlm, batch, starts):
        self.asked = starts.prompts(vlm, batch)
        return self.numbers


def encoded(vlm, texts=("", "", ""), side="left", targets=TARGETS):
    """The examples with texts written in front of their prompts; the Q-Former reads as without."""
    images, prompts = examples()
    written = [text + prompt for text, prompt in zip(texts, prompts, strict=True)]
    batch = vlm.encode(images, written, targets, padding_side=side)
    asked = vlm.encode(images, prompts, targets, padding_side=side).inputs
    qformer = {key: value for key, value in asked.items() if key.startswith("qformer_")}
    batch.inputs.update(qformer)
    return batch


@torch.no_grad()
def answers(vlm, batch):
    """Logits where an answer token is asked for."""
    return vlm.logits(batch)[batch.labels != -100]


@torch.no_grad()
def test_text_in_front_is_text_written_into_the_prompt(different_vlm):
    batch = encoded(different_vlm)
    wanted = answers(different_vlm, encoded(different_vlm, (TEXT,) * 3))
    with PromptEdit((TEXT,)).applied(different_vlm):
        logits = different_vlm.logits(batch)
    assert logits.shape[:2] == batch["last"].shape
    assert torch.allclose(logits[batch.labels != -100], wanted, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(answers(different_vlm, batch), wanted, atol=1e-2)


def test_generation_continues_the_prompt_with_the_text_written_into_it(vlm):
    wanted = vlm.generate(encoded(vlm, (TEXT,) * 3, targets=None), 4)
    plain = vlm.generate(encoded(vlm, targets=None), 4)
    with PromptEdit((TEXT,)).applied(vlm):
        assert vlm.generate(encoded(vlm, side="right", targets=None), 4) == wanted
    assert plain != wanted
    assert vlm.generate(encoded(vlm, targets=None), 4) == plain


@torch.no_grad()
def test_no_text_is_the_plain_pass_to_the_last_bit(vlm):
    batch = encoded(vlm)
    plain = vlm.logits(batch)
    with PromptEdit(("",)).applied(vlm):
        assert torch.equal(vlm.logits(batch), plain)
    with PromptEdit((TEXT,), select=By(*[NO_TEXT] * 3)).applied(vlm):
        assert torch.equal(vlm.logits(batch), plain)
    with PromptEdit((TEXT,)).applied(vlm):
        assert not torch.equal(vlm.logits(batch), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_example_has_the_text_chosen_for_it(vlm, side):
    select = By(1, NO_TEXT, 0)
    with PromptEdit((TEXT, "No: "), select=select).applied(vlm):
        found = answers(vlm, encoded(vlm, side=side))
    wanted = answers(vlm, encoded(vlm, ("No: ", "", TEXT), side))
    assert torch.allclose(found, wanted, atol=2e-4, rtol=1e-3)
    assert select.asked == examples()[1]


def test_of_contexts_in_one_another_the_outer_text_comes_first(vlm):
    batch = encoded(vlm)
    with PromptEdit(("One. ",)).applied(vlm), PromptEdit(("Two. ",)).applied(vlm):
        found = answers(vlm, batch)
    wanted = answers(vlm, encoded(vlm, ("One. Two. ",) * 3))
    assert torch.allclose(found, wanted, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(wanted, answers(vlm, encoded(vlm, ("Two. One. ",) * 3)), atol=1e-3)


@torch.no_grad()
def test_an_error_inside_leaves_nothing_behind(vlm):
    batch = encoded(vlm)
    plain = vlm.logits(batch)

    def fails(_batch):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), PromptEdit((TEXT,)).applied(vlm):
        vlm.logits(batch)
        with vlm.rewrite_prompts(fails):
            vlm.logits(batch)
    assert torch.equal(vlm.logits(batch), plain)


@torch.no_grad()
def test_what_a_rewriter_runs_itself_is_run_as_given(vlm):
    batch = encoded(vlm)
    plain, seen = vlm.logits(batch), []

    def looks(given):
        seen.append(vlm.logits(given))
        return RewrittenBatch(given)

    with PromptEdit((TEXT,)).applied(vlm), vlm.rewrite_prompts(looks):
        vlm.logits(batch)
    assert torch.equal(seen[0], plain)


def test_spans_and_labels_move_with_their_tokens(vlm):
    batch, wanted = encoded(vlm), encoded(vlm, (TEXT,) * 3)
    ran = []
    with vlm.rewrite_prompts(lambda b: ran.append(b) or RewrittenBatch(b)), \
            PromptEdit((TEXT,)).applied(vlm):  # fmt: skip
        answers(vlm, batch)
    (run,) = ran
    assert torch.equal(run.labels, wanted.labels)
    for name, span in wanted.spans.items():
        assert torch.equal(run.spans[name], span), name
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(run.inputs[key], wanted.inputs[key]), key


def test_prompts_that_lost_their_targets_are_served_as_well(vlm):
    batch = encoded(vlm)
    with PromptEdit((TEXT,)).applied(vlm):
        found = vlm.generate(without_target(vlm, batch), 4)
    assert found == vlm.generate(encoded(vlm, (TEXT,) * 3, targets=None), 4)


def test_the_space_between_two_words_belongs_to_the_second():
    vlm = tiny_vlm("llava")
    both = vlm.tokenizer("Fact: a", add_special_tokens=False)["input_ids"]
    assert list(text_tokens(vlm, "Fact: ")) == both[:-1] and text_tokens(vlm, "") == ()


def test_text_that_does_not_fit_and_texts_without_a_choice_are_refused():
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match="but llava has 512 positions; use shorter text"), \
            PromptEdit(("word " * 120,)).applied(vlm):  # fmt: skip
        vlm.logits(encoded(vlm))
    with pytest.raises(AttribError, match="2 texts need something that selects"):
        PromptEdit(("one", "two"))
    assert PromptEdit(("one", "two"), select=By(0)).num_bytes == 9
