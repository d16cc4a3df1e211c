"""Gate similarity: cosines of the states it names, and nothing of the answer but where it leaks."""

import copy
from inspect import unwrap  # the type checks of test runs would speak before our own messages

import pytest
import torch
from conftest import examples, picture
from torch.testing import assert_close

from attrib.analyses.gating import (
    LEAKING,
    TOKENS,
    gate_similarity,
    gate_states,
    token_positions,
)
from attrib.errors import AttribError
from attrib.forward.hooks import read

TARGETS = ["red", "blue green", "Jane Austen"]
PROMPT_TOKENS = [token for token in TOKENS if token != LEAKING]


def others(vlm, targets=None):
    """Other prompts, other pictures, text alone in another row, another padding."""
    prompts = ["Who?", "Which of these many things is blue?", "Is it?"]
    images = [picture(seed=30), picture(80, 50, seed=31), None]
    return vlm.encode(images, prompts, targets, padding_side="right")


def test_similarity_is_the_cosine_of_two_states(different_vlm):
    edits, inputs = different_vlm.encode(*examples(), TARGETS), others(different_vlm, TARGETS)
    hidden = []
    for batch in (edits, inputs):
        with read(different_vlm) as captured:
            different_vlm.logits(batch)
        hidden.append((batch, list(captured.values())))
    for token in TOKENS:
        one, two = (
            torch.stack([
                torch.stack([h[i, at[i]].mean(0) for h in states])
                for i, at in enumerate([token_positions(batch, token)] * 3)
            ])
            for batch, states in hidden
        )  # fmt: skip
        expected = (one * two).sum(-1) / (one.norm(dim=-1) * two.norm(dim=-1))
        every = gate_similarity(different_vlm, edits, inputs, None, token)
        assert_close(every, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert every[0].isfinite().all()
    last = different_vlm.num_layers - 1
    one = gate_similarity(different_vlm, edits, inputs, last, token)
    assert one.shape == (3,)
    assert_close(one, every[:, last], equal_nan=True)


def test_what_has_no_image_has_no_visual_state(vlm):
    batch = vlm.encode(*examples())  # the second is text alone
    similarity = gate_similarity(vlm, batch, batch, None, "visual_mean")
    assert similarity[1].isnan().all() and similarity[[0, 2]].isfinite().all()
    assert gate_similarity(vlm, batch, batch, None, "text_mean").isfinite().all()


@pytest.mark.parametrize("token", TOKENS)
def test_similarity_is_1_to_itself_and_symmetric(vlm, token):
    edits, inputs = vlm.encode(*examples(), TARGETS), others(vlm, TARGETS)
    itself = gate_similarity(vlm, edits, edits, None, token)
    there, back = (
        gate_similarity(vlm, a, b, None, token) for a, b in ((edits, inputs), (inputs, edits))
    )
    assert_close(itself[itself.isfinite()], torch.ones(int(itself.isfinite().sum())))
    assert_close(there, back, equal_nan=True)
    assert (there[0] < 0.999).any()


def test_only_the_leaking_token_depends_on_the_answer(different_vlm):
    images, prompts = examples()
    plain = gate_states(different_vlm, different_vlm.encode(images, prompts), PROMPT_TOKENS)
    for targets in (TARGETS, TARGETS[::-1]):
        forced = gate_states(different_vlm, different_vlm.encode(images, prompts, targets))
        known = forced[:, :, : len(PROMPT_TOKENS)]
        assert_close(known, plain, atol=1e-4, rtol=1e-4, equal_nan=True)
    answers = [different_vlm.encode(images, prompts, targets) for targets in (TARGETS, ["x"] * 3)]
    assert (gate_similarity(different_vlm, *answers, 1, "target_last") < 0.999).all()
    assert_close(gate_similarity(different_vlm, *answers, 1), torch.ones(3))


def test_the_last_target_token_is_the_last_of_the_sequence(vlm):
    for side in ("left", "right"):
        batch = vlm.encode(*examples(), TARGETS, padding_side=side)
        at, real = token_positions(batch, "target_last"), batch.inputs["attention_mask"].bool()
        for i in range(3):
            assert at[i].nonzero().tolist() == [[real[i].nonzero().max().item()]]


def test_a_batch_gives_what_its_examples_give_alone(vlm):
    images, prompts = examples(4)
    targets = ["red", "blue", "green", "a star"]
    together = gate_states(vlm, vlm.encode(images, prompts, targets))
    assert together.shape == (4, vlm.num_layers, len(TOKENS), vlm.d_model)
    for i in range(4):
        alone = gate_states(vlm, vlm.encode([images[i]], [prompts[i]], [targets[i]]))
        assert_close(together[i], alone[0], atol=1e-4, rtol=1e-4, equal_nan=True)


def test_one_pass_gives_all_layers_and_tokens(vlm):
    batch, passes = vlm.encode(*examples(), TARGETS), []
    handle = vlm.layers[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        gate_states(vlm, batch)
    finally:
        handle.remove()
    assert len(passes) == 1


def test_half_precision_is_compared_in_float32(vlm):
    half = type(vlm)(copy.deepcopy(vlm.model).bfloat16(), vlm.processor)
    states = [gate_states(one, one.encode(*examples()), ["text_mean"]) for one in (half, vlm)]
    assert states[0].dtype == torch.float32
    assert (torch.cosine_similarity(*states, dim=-1) > 0.99).all()


def test_inputs_that_cannot_be_compared_are_refused(vlm, batch):
    with pytest.raises(AttribError, match="3 edits and 2 others"):
        gate_similarity(vlm, batch, vlm.encode(*examples(2)), 1)
    with pytest.raises(AttribError, match=r"layer 4: .* has layers 0 to 3"):
        gate_similarity(vlm, batch, batch, 4)
    with pytest.raises(AttribError, match=r"target_last.* needs .*targets"):
        gate_similarity(vlm, batch, batch, 1, "target_last")
    with pytest.raises(AttribError, match="token: expected one of visual_mean, text_mean"):
        unwrap(token_positions)(batch, "sequence_last")
