"""What we read is what TransformerLens reads, on all 14 architectures.

Its bridges run the same weights through other code: attention of its own for most models, eager
elsewhere, its own norms and its own processing of weights. Agreement is evidence about the wiring.
"""

import pytest
import torch
from bridged import LAYERS, assert_near, at_last, batch_of, run
from conftest import tiny_vlm

from attrib.analyses.contributions import contributions
from attrib.analyses.direct_logits import direct_logits
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import read
from attrib.model.vlm import VLM
from tests.architectures.bridge import differences
from tests.architectures.registry import build


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def real(batch):
    return batch.inputs["attention_mask"].bool()


def keys_of(vlm, batch):
    """The predicted token of each example, and another one."""
    key = vlm.logits(batch)[batch["last"]].argmax(-1)
    return key, (key + 7) % 256


def test_logits_are_those_of_the_bridge(different_vlm):
    batch, (logits, _) = batch_of(different_vlm.name), run(different_vlm.name)
    assert_near(different_vlm.logits(batch)[real(batch)], logits[real(batch)])


def test_hidden_states_are_those_of_the_bridge(different_vlm):
    batch, (_, cache) = batch_of(different_vlm.name), run(different_vlm.name)
    with read(different_vlm) as hidden:
        different_vlm.logits(batch)
    for layer in LAYERS:
        assert_near(hidden[layer][real(batch)], cache["resid_post", layer][real(batch)])


def test_attention_rows_are_those_of_the_bridge(different_vlm):
    batch, (_, cache) = batch_of(different_vlm.name), run(different_vlm.name)
    with attention_rows(different_vlm, batch["last"]) as rows:
        different_vlm.logits(batch)
    for layer in LAYERS:
        assert_near(rows[layer], at_last(cache["pattern", layer], batch, axis=2))


def test_everything_in_our_cache_is_in_the_bridges(different_vlm):
    batch, (_, theirs) = batch_of(different_vlm.name), run(different_vlm.name)
    ours = different_vlm.cache(batch)
    assert len(ours) == 2 + 7 * len(LAYERS)
    for name, value in ours.items():
        axis = 2 if name.endswith("hook_pattern") else 1
        expected = at_last(theirs[name], batch, axis)
        if name == "hook_embed" and theirs.has_pos_embed:  # ours is all that enters layer 0
            expected = expected + at_last(theirs["hook_pos_embed"], batch)
        assert_near(value.squeeze(axis), expected)


def test_reads_of_a_gated_hybrid_are_those_of_the_bridge(monkeypatch):
    """Linear attention in three layers, gated attention in one; `python -m tests.architectures`
    compares all types that TransformerLens can run."""
    vlm = VLM(*build("qwen3_5"), "qwen3_5")
    assert differences(vlm) == []
    monkeypatch.setattr("tests.architectures.bridge.LIMIT", 0)  # the control: it compares numbers
    assert {"logits", "state after layer 3", "blocks.3.attn.hook_z"} <= dict(
        differences(vlm)
    ).keys()


def test_contributions_are_its_direct_logit_attribution(different_vlm):
    batch, (_, cache) = batch_of(different_vlm.name), run(different_vlm.name, processed=True)
    key, other = keys_of(different_vlm, batch)
    stack = cache.decompose_resid(incl_embeds=False)
    # Its weights are processed so that a logit is defined up to a constant over the vocabulary.
    theirs = at_last(cache.logit_attrs(stack, key, other).transpose(0, 1), batch, axis=2)
    ours = [contributions(different_vlm, batch, token, "frozen") for token in (key, other)]
    assert_near((ours[0] - ours[1]).flatten(1), theirs)


def test_without_processed_weights_its_attribution_is_not_the_models():
    # The control: the comparison above depends on folding the final norm's weight.
    vlm, batch, (_, cache) = tiny_vlm("llava"), batch_of("llava"), run("llava")
    key, other = keys_of(vlm, batch)
    stack = cache.decompose_resid(incl_embeds=False)
    theirs = at_last(cache.logit_attrs(stack, key, other).transpose(0, 1), batch, axis=2)
    ours = [contributions(vlm, batch, token, "frozen") for token in (key, other)]
    assert ((ours[0] - ours[1]).flatten(1) - theirs).abs().max() > 1e-2


def test_our_caches_attribution_is_our_contributions(different_vlm):
    batch = batch_of(different_vlm.name)
    key, _ = keys_of(different_vlm, batch)
    cache = different_vlm.cache(batch)
    stack, labels = cache.decompose_resid(return_labels=True)
    shares = cache.logit_attrs(stack, key)[..., 0]
    direct = direct_logits(different_vlm, batch, key)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    assert_near(shares[0], direct.embed)
    assert_near(shares[1:].T, contributions(different_vlm, batch, key, "frozen").flatten(1))
    logit = different_vlm.logits(batch)[batch["last"]].gather(1, key[:, None])[:, 0]
    assert_near(shares.sum(0) + direct.constant, logit)
