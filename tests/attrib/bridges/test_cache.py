"""A pass of ours as an ActivationCache: its methods give what the model computes."""

import copy

import pytest
import torch
from bridged import LAYERS, assert_near, batch_of
from conftest import examples, tiny_vlm
from transformer_lens import ActivationCache

from attrib.errors import AttribError
from attrib.forward.attention import attention_rows
from attrib.forward.hooks import read
from attrib.model.logits import freeze_norm
from attrib.model.vlm import VLM

RESIDUAL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def cached(different_vlm):
    """A model with its batch and the cache at the last prompt token."""
    batch = batch_of(different_vlm.name)
    with torch.no_grad():
        return different_vlm, batch, different_vlm.cache(batch)


def last_logits(vlm, batch):
    return vlm.logits(batch)[batch["last"]]


def test_the_stream_is_a_sum_of_what_was_written(cached):
    vlm, _, cache = cached
    assert isinstance(cache, ActivationCache)
    parts = cache.decompose_resid()
    assert parts.shape == (1 + 2 * len(LAYERS), 3, 1, vlm.d_model)
    assert_near(parts.sum(0), cache["resid_post", -1])
    for layer in LAYERS:
        assert_near(cache.decompose_resid(layer).sum(0), cache["resid_pre", layer])
        assert_near(cache.decompose_resid(layer, mlp_input=True).sum(0), cache["resid_mid", layer])


def test_the_accumulated_stream_is_what_read_sees_and_unembeds_to_the_logits(cached):
    vlm, batch, cache = cached
    with read(vlm) as hidden:
        logits = last_logits(vlm, batch)
    stream, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]
    for layer in LAYERS:
        assert_near(stream[layer + 1, :, 0], hidden[layer][batch["last"]])
    normed = cache.accumulated_resid(apply_ln=True, incl_mid=True)
    assert_near((normed[-1] @ cache.model.W_U + cache.model.b_U)[:, 0], logits)


def test_the_logit_lens_ends_at_the_models_logits(cached):
    vlm, batch, cache = cached
    key = last_logits(vlm, batch).argmax(-1)
    lens = cache.logit_lens(targets=key)
    assert lens.labels[-1] == "final_post"
    assert_near(lens.values[-1, :, 0], last_logits(vlm, batch).amax(-1))
    assert not lens.rank_trajectory()[-1].any()


def test_the_final_scale_is_the_root_mean_square_of_the_final_state(cached):
    vlm, _, cache = cached
    final = cache["resid_post", -1].float()
    if freeze_norm(vlm.components.norm, final[:, 0]).centred:
        final = final - final.mean(-1, keepdim=True)
    root_mean_square = final.square().mean(-1, keepdim=True).sqrt()
    assert_near(cache["ln_final.hook_scale"], root_mean_square, 1e-4)  # but for its epsilon


def test_heads_add_up_to_what_attention_writes(cached):
    vlm, _, cache = cached
    if vlm.name == "gemma3":  # a norm follows the output projection
        with pytest.raises(AttribError, match=r"layer 0: .* not a linear map of its heads"):
            cache.stack_head_results()
        return
    stack, labels = cache.stack_head_results(return_labels=True)
    assert labels == [f"L{layer}H{head}" for layer in LAYERS for head in range(4)]
    heads = stack.unflatten(0, (len(LAYERS), 4)).sum(1)
    written = cache.decompose_resid(mode="attn", incl_embeds=False)
    for layer, block in enumerate(vlm.layers):
        bias = getattr(getattr(block.self_attn, "out_proj", None), "bias", None)
        assert_near(heads[layer] + (0 if bias is None else bias), written[layer])


def test_every_position_is_where_it_is_in_the_batch(vlm):
    batch = batch_of(vlm.name)
    cache, last = vlm.cache(batch, "all"), vlm.cache(batch)
    real = batch.inputs["attention_mask"].bool()
    with read(vlm) as hidden:
        vlm.logits(batch)
    for layer in LAYERS:
        assert torch.equal(cache["resid_post", layer][real], hidden[layer][real])
        for name in RESIDUAL:
            assert cache[name, layer][~real].isnan().all()
            assert torch.equal(cache[name, layer][batch["last"]], last[name, layer][:, 0])
        pattern = cache["pattern", layer]
        assert_near(pattern.transpose(1, 2)[real].sum(-1), torch.ones(int(real.sum()), 4))
        assert pattern.transpose(1, 2)[~real].isnan().all()


@pytest.mark.parametrize("span", ["visual", "text", "bos"])
def test_a_span_is_its_positions_in_order_and_nan_past_an_examples_own(span):
    vlm = tiny_vlm("llava")
    batch = batch_of("llava")
    cache, everything = vlm.cache(batch, span), vlm.cache(batch, "all")
    count = batch[span].sum(1)
    assert count.min() < count.max() or span == "bos"  # ragged, and a text without an image
    for i, num in enumerate(count.tolist()):
        at = batch[span][i]
        for name in RESIDUAL:
            assert torch.equal(cache[name, 2][i, :num], everything[name, 2][i, at])
            assert cache[name, 2][i, num:].isnan().all()
        if num:
            assert_near(cache["pattern", 2][i, :, :num], everything["pattern", 2][i][:, at], 1e-6)
        assert cache["pattern", 2][i, :, num:].isnan().all()


def test_several_attention_rows_are_the_single_ones():
    vlm, batch = tiny_vlm("llava"), batch_of("llava")
    queries = torch.tensor([[20, 27], [26, 24], [22, 21]])
    with attention_rows(vlm, queries) as several:
        vlm.logits(batch)
    for column in range(2):
        with attention_rows(vlm, queries[:, column]) as one:
            vlm.logits(batch)
        assert_near(several[1][:, :, column], one[1], 1e-6)


def test_what_is_written_between_layers_has_a_name_of_its_own():
    vlm = tiny_vlm("qwen3_vl")
    cache = vlm.cache(batch_of("qwen3_vl"), "visual")
    between = [name for name in cache if name.endswith("between")]
    assert between == ["blocks.0.hook_between", "blocks.1.hook_between"]
    there = ~cache["resid_post", 0].isnan()
    for layer in (0, 1):
        total = cache["resid_post", layer] + cache[f"blocks.{layer}.hook_between"]
        assert_near(total[there], cache["resid_pre", layer + 1][there])


def test_the_weights_are_the_models_own():
    vlm = tiny_vlm("llava")
    model = vlm.cache(batch_of("llava")).model
    head = vlm.components.head.weight
    assert model.W_U.data_ptr() == head.data_ptr()
    assert model.blocks[1].attn.W_O.data_ptr() == vlm.layers[1].self_attn.o_proj.weight.data_ptr()
    assert model.ln_final is vlm.components.norm


def test_one_example_may_lose_its_batch_dimension():
    vlm = tiny_vlm("llava")
    batch = vlm.encode(*examples(1))
    cache, key = vlm.cache(batch), last_logits(vlm, batch).argmax(-1)
    shares = cache.logit_attrs(cache.decompose_resid(), key)[:, 0]
    heads = cache.stack_head_results()[:, 0].clone()
    cache = vlm.cache(batch).remove_batch_dim()
    alone = cache.logit_attrs(cache.decompose_resid(), int(key), has_batch_dim=False)
    assert_near(alone, shares)
    assert_near(cache.stack_head_results(), heads)


def test_tokens_may_be_given_as_text():
    vlm = tiny_vlm("llava")
    cache = vlm.cache(batch_of("llava"))
    stack = cache.decompose_resid()
    (token,) = vlm.tokenizer("x", add_special_tokens=False)["input_ids"]
    assert torch.equal(cache.logit_attrs(stack, "x"), cache.logit_attrs(stack, token))
    with pytest.raises(AttribError, match="'red' is 3 tokens, expected one"):
        cache.logit_attrs(stack, "red")


def test_attention_can_be_left_out():
    cache = tiny_vlm("llava").cache(batch_of("llava"), attention=False)
    assert "blocks.0.hook_attn_out" in cache
    assert not [name for name in cache if ".attn." in name]


def test_a_half_precision_model_is_cached_in_its_dtype():
    vlm = tiny_vlm("llava")
    half = VLM(copy.deepcopy(vlm.model).to(torch.bfloat16), vlm.processor)
    batch = half.encode(*examples())
    cache = half.cache(batch)
    assert cache["resid_post", 0].dtype == torch.bfloat16
    shares = cache.logit_attrs(
        cache.decompose_resid(), half.logits(batch)[batch["last"]].argmax(-1)
    )
    logits = half.logits(batch)[batch["last"]].float().amax(-1)
    assert_near(shares.float().sum(0)[:, 0], logits, 3e-2)
    assert cache.stack_head_results().shape == (16, 3, 1, 64)


def test_wrong_requests_are_named():
    vlm, batch = tiny_vlm("llava"), batch_of("llava")
    with pytest.raises(AttribError, match=r"no 'target' here, expected \"all\" or one of .*'last'"):
        vlm.cache(batch, "target")
    text = vlm.encode([None], ["only text"])
    with pytest.raises(AttribError, match="no 'visual' here"):
        vlm.cache(text, "visual")
    with pytest.raises(AttributeError, match=r"W_in: .* vlm\.to_bridge\(\) has everything"):
        _ = vlm.cache(batch).model.W_in
