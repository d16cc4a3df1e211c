"""Contributions: the paper's equations, additivity, and writes that we planted ourselves."""

import copy
from contextlib import contextmanager
from inspect import unwrap  # the type checks of test runs would speak before our own messages

import pytest
import torch
from conftest import examples, picture
from torch.testing import assert_close

from attrib.analyses.contributions import contribution_parts, contributions, contributions_of
from attrib.analyses.direct_logits import direct_logits, key_tokens, last_writes
from attrib.errors import AttribError
from attrib.forward.residual import residual_writes

NORMS = ("none", "final", "frozen")
LAYER = 2


def weight(vlm):
    """The output embedding, "d_vocab d_model"."""
    return vlm.model.get_output_embeddings().weight


def last_logits(vlm, batch):
    """The model's own logits at the last prompt token."""
    return vlm.logits(batch)[batch["last"]]


@contextmanager
def planted(vlm, layer, direction, at):
    """The MLP of `layer` also writes `direction` at the positions `at`."""
    mlp = getattr(vlm.layers[layer], "mlp", None) or vlm.layers[layer].fc2

    def plant(_module, _args, output):
        added = torch.where(at[..., None], direction, 0.0).reshape(output.shape)
        return output + added

    handle = mlp.register_forward_hook(plant)
    try:
        yield
    finally:
        handle.remove()


def test_frozen_shares_sum_to_the_logit(different_vlm):
    batch = different_vlm.encode(*examples(), padding_side="left")
    parts = direct_logits(different_vlm, batch)
    assert_close(contributions(different_vlm, batch, norm="frozen"), parts.modules)
    logits = last_logits(different_vlm, batch).gather(1, parts.key[:, None])[:, 0]
    assert_close(parts.total, logits, atol=1e-4, rtol=0)
    assert parts.modules.abs().sum() > 1  # the sum is not empty


@pytest.mark.parametrize("norm", ["none", "final"])
def test_contributions_are_the_papers_equations(vlm, batch, norm):
    key = torch.tensor([5, 70, 200])
    parts = contribution_parts(vlm, batch, key, norm)
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.logits(batch)
    for i, token in enumerate(key):
        logits = {}
        for layer in range(vlm.num_layers):
            for module, r in enumerate((writes.attn[i, layer], writes.mlp[i, layer])):
                logits[layer, module] = vlm.unembed(r) if norm == "final" else weight(vlm) @ r
        largest = max(abs(v[token]) for v in logits.values())
        for (layer, module), v in logits.items():
            size = (v.softmax(-1)[token] * abs(v[token]) / largest) ** 0.5
            assert_close(parts.value[i, layer, module], v[token].sign() * size)


@pytest.mark.parametrize("norm", ["none", "final"])
def test_contributions_keep_the_sign_of_their_logit_and_stay_within_one(vlm, batch, norm):
    parts = contribution_parts(vlm, batch, norm=norm)
    assert torch.equal(parts.value.sign(), parts.logit.sign())
    assert (parts.value < 0).any() and (parts.value > 0).any()
    assert (parts.value.abs() <= 1).all() and (parts.probability <= 1).all()


def test_a_batch_gives_what_its_examples_give_alone(vlm, batch):
    images, prompts = examples()

    def all_norms(batch):
        writes = last_writes(vlm, batch)
        key = key_tokens(vlm, batch, writes, "argmax")
        return torch.stack([contributions_of(vlm, writes, key, norm).value for norm in NORMS], 1)

    together = all_norms(batch)
    for i in range(3):
        alone = all_norms(vlm.encode([images[i]], [prompts[i]]))
        assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)


def test_one_forward_pass_is_enough(vlm, batch):
    passes = []
    handle = vlm.layers[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        contributions(vlm, batch, norm="final")
    finally:
        handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("size", [3.0, -3.0])
def test_a_planted_write_moves_the_share_of_its_layer(vlm, batch, size):
    key = torch.tensor([5, 70, 200])
    direction = size * weight(vlm)[5]
    at = batch["last"]
    clean = contribution_parts(vlm, batch, key).logit
    with planted(vlm, LAYER, direction, at):
        moved = contribution_parts(vlm, batch, key).logit
    expected = weight(vlm)[key] @ direction
    assert torch.equal(moved[:, :LAYER], clean[:, :LAYER])
    assert torch.equal(moved[:, LAYER, 0], clean[:, LAYER, 0])
    assert_close(moved[:, LAYER, 1] - clean[:, LAYER, 1], expected, atol=1e-4, rtol=1e-4)


def test_a_write_elsewhere_than_the_last_prompt_token_is_not_counted(vlm, batch):
    last = vlm.num_layers - 1  # what is written there reaches no other position
    clean = contribution_parts(vlm, batch).logit
    with planted(vlm, last, 9 * weight(vlm)[5], batch["text"] & ~batch["last"]):
        assert torch.equal(contribution_parts(vlm, batch).logit, clean)
    with planted(vlm, last, 9 * weight(vlm)[5], batch["last"]):
        assert not torch.equal(contribution_parts(vlm, batch).logit, clean)


def test_a_wrong_key_gets_little_of_a_planted_answer(vlm, batch):
    right, wrong = torch.full((3,), 5), torch.full((3,), 70)
    loud = 40 * weight(vlm)[5] / weight(vlm)[5].norm()
    with planted(vlm, LAYER, loud, batch["last"]):
        answer = contributions(vlm, batch, right)
        control = contributions(vlm, batch, wrong)
    assert (answer[:, LAYER, 1] > 0.9).all()
    assert (answer.flatten(1).argmax(1) == LAYER * 2 + 1).all()
    assert (control[:, LAYER, 1].abs() < 0.1 * answer[:, LAYER, 1]).all()


def test_the_argmax_key_is_what_the_model_predicts(vlm, batch):
    parts = contribution_parts(vlm, batch)
    assert torch.equal(parts.key, last_logits(vlm, batch).argmax(-1))
    assert torch.equal(parts.value, contributions(vlm, batch, parts.key))


def test_the_gold_key_is_the_first_token_of_the_target(vlm):
    images, prompts = [picture(), None], ["What color?", "Who?"]
    targets = ["red", "Jane Austen"]
    with_targets = vlm.encode(images, prompts, targets)
    parts = contribution_parts(vlm, with_targets, "gold")
    first = torch.tensor([vlm.answer_token(target) for target in targets])
    assert torch.equal(parts.key, first)
    # The target's own tokens change nothing: contributions are read in front of them.
    alone = contributions(vlm, vlm.encode(images, prompts), first)
    assert_close(parts.value, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("gold", "needs targets"),
        ("best", 'expected "argmax", "gold" or one token id per example, got \'best\''),
        (torch.tensor([1, 2]), "expected 3 token ids below"),
        (torch.tensor([1, 2, 10**6]), "expected 3 token ids below"),
        (torch.tensor([1, 2, -1]), "expected 3 token ids below"),
    ],
)
def test_an_invalid_key_is_refused(vlm, batch, key, told):
    writes = last_writes(vlm, batch)
    with pytest.raises(AttribError, match="key") as error:
        unwrap(key_tokens)(vlm, batch, writes, key)
    assert told in str(error.value)


def test_an_unknown_norm_is_refused(vlm, batch):
    writes = last_writes(vlm, batch)
    with pytest.raises(AttribError, match='expected "none", "final" or "frozen"'):
        unwrap(contributions_of)(vlm, writes, torch.tensor([1, 2, 3]), "layer")


def test_bfloat16_models_give_float32_contributions_close_to_their_own(vlm):
    half = type(vlm)(copy.deepcopy(vlm.model).bfloat16(), vlm.processor)
    batch = half.encode(*examples(), padding_side="left")
    parts = direct_logits(half, batch)
    logits = last_logits(half, batch).float().gather(1, parts.key[:, None])[:, 0]
    assert parts.modules.dtype == torch.float32
    assert_close(parts.total, logits, atol=0.05, rtol=0.05)
