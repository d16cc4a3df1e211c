"""Captured attention is that of the model, and nothing is left behind."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import examples, tiny_vlm
from torch.testing import assert_close
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attrib.analyses.qformer import find_qformer
from attrib.errors import AttribError
from attrib.forward.attention import attention_rows, capture_attention, capture_calls
from attrib.model.vlm import VLM
from tests.architectures.registry import build


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def copied(vlm, **settings):
    model = copy.deepcopy(vlm.model)
    if settings:
        model.set_attn_implementation(settings["attention"])
    return VLM(model, vlm.processor, vlm.name)


@pytest.mark.parametrize("num", [1, 3])  # alone: no padding, and for most no mask at all
def test_attention_rows_equal_eager_attention(different_vlm, num):
    batch = different_vlm.encode(*examples(num), padding_side="left")
    eager = copied(different_vlm, attention="eager")
    out = eager.model(**batch.inputs, output_attentions=True, use_cache=False)
    theirs = getattr(out, "language_model_outputs", out).attentions
    for query in (batch["last"].int().argmax(1), batch["text"].int().argmax(1)):
        with attention_rows(different_vlm, query) as rows:
            different_vlm.logits(batch)
        assert len(rows) == len(theirs) == different_vlm.num_layers
        for layer, attention in enumerate(theirs):
            expected = attention[torch.arange(num), :, query]
            assert_close(rows[layer], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_row_looks_at_padding_or_ahead(vlm, side):
    batch = vlm.encode(*examples(), padding_side=side)
    last = batch["last"].int().argmax(1)
    with attention_rows(vlm, last) as rows:
        vlm.logits(batch)
    seen = batch.inputs["attention_mask"].bool()[:, None]
    for row in rows.values():
        assert_close(row.sum(-1), torch.ones(row.shape[:2]))
        assert not row.masked_select(~seen).any()


def test_rows_of_a_generation_are_those_of_its_prompt(vlm, batch):
    with attention_rows(vlm, batch["last"]) as plain:
        vlm.logits(batch)
    with attention_rows(vlm, batch["last"]) as rows:
        vlm.generate(batch, max_new_tokens=3)
    for layer in plain:
        assert_close(rows[layer], plain[layer])


def test_captures_nest(vlm, batch):
    outer, inner = {}, {}
    with capture_attention(vlm, outer.__setitem__):
        with capture_attention(vlm, inner.__setitem__):
            vlm.logits(batch)
        assert outer.keys() == inner.keys() == set(range(4))
        inner.clear()
        vlm.logits(batch)
    assert not inner


def test_the_attention_function_is_restored_and_keeps_its_name(vlm, batch):
    configs = [m.config for m in vlm.model.modules() if hasattr(m, "config")]
    before = [config._attn_implementation for config in configs]
    with pytest.raises(ZeroDivisionError), attention_rows(vlm, batch["last"]):
        assert [config._attn_implementation for config in configs] == before
        assert AttentionInterface()["sdpa"] is not sdpa_attention_forward
        assert "eager" in ALL_ATTENTION_FUNCTIONS
        raise ZeroDivisionError
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    assert "eager" not in ALL_ATTENTION_FUNCTIONS


@pytest.mark.parametrize("name", ["paligemma: Gemma 2", "inkling_mm_model"])
def test_soft_caps_and_biases_of_scores_are_in_the_rows(name):
    vlm = VLM(*build(name), name)
    batch, calls = vlm.encode(*examples(2), padding_side="left"), []
    query = batch["last"].int().argmax(1)
    with (
        capture_attention(vlm, lambda _, call: calls.append(call)),
        attention_rows(vlm, query) as rows,
    ):
        hooked = vlm.logits(batch)
    assert torch.equal(hooked, vlm.logits(batch))  # also in a context, it attends as it does
    vlm.model.set_attn_implementation("eager")
    theirs = vlm.model(**batch.inputs, output_attentions=True, use_cache=False).attentions
    for layer, (attention, call) in enumerate(zip(theirs, calls, strict=True)):
        assert call.softcap or call.position_bias is not None
        assert_close(rows[layer], attention[torch.arange(2), :, query], atol=1e-6, rtol=1e-5)


def test_attention_sinks_are_refused(monkeypatch):
    vlm = copied(tiny_vlm("llava"))
    batch = vlm.encode(*examples())
    attention = vlm.layers[2].self_attn
    forward = attention.forward
    monkeypatch.setattr(
        attention, "forward", lambda *a, **k: forward(*a, s_aux=torch.zeros(4), **k)
    )
    with (
        pytest.raises(AttribError, match="LlamaAttention uses s_aux"),
        attention_rows(vlm, batch["last"]),
    ):
        vlm.logits(batch)


def test_another_thread_runs_the_models_own_attention(vlm, batch):
    """The name in the configuration is shared by threads, the captured functions are not."""
    clean, rows = vlm.logits(batch), {}
    with capture_attention(vlm, rows.__setitem__), ThreadPoolExecutor(1) as pool:
        logits = pool.submit(torch.no_grad()(vlm.logits), batch).result()
    assert not rows and torch.equal(logits, clean)


def test_a_q_former_and_the_decoder_are_captured_in_one_pass():
    vlm = tiny_vlm("blip2_opt")
    batch, queries, rows = vlm.encode(*examples()), [], {}
    qformer = find_qformer(vlm)
    with (
        capture_calls(qformer, lambda module, _call: queries.append(module)),
        capture_attention(vlm, rows.__setitem__),
    ):
        vlm.logits(batch)
    assert set(rows) == set(range(vlm.num_layers))
    assert queries and {id(m) for m in queries} <= {id(m) for m in qformer.modules()}
