"""Reading changes nothing, writing is confined, and everything adds up."""

import copy

import pytest
import torch
from conftest import examples, tiny_vlm
from torch import nn
from torch.testing import assert_close

from attrib.errors import AttribError
from attrib.forward.attention import attention_rows, capture_attention
from attrib.forward.hooks import read, write
from attrib.forward.replay import capture, forward_from, logits_from
from attrib.forward.residual import residual_writes
from attrib.model.vlm import VLM

SPANS = ("visual", "text", "last")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def copied(vlm, **settings):
    model = copy.deepcopy(vlm.model)
    if settings:
        model.set_attn_implementation(settings["attention"])
    return VLM(model, vlm.processor, vlm.name)


def num_hooks(vlm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())


# --- read and write


def test_read_gives_the_models_own_hidden_states(vlm, batch):
    other = copied(vlm)  # asking a model for its hidden states leaves hooks behind
    with read(vlm) as hidden:
        vlm.logits(batch)
    out = other.model(**batch.inputs, output_hidden_states=True, use_cache=False)
    theirs = getattr(out, "language_model_outputs", out).hidden_states
    for layer in range(vlm.num_layers - 1):
        assert torch.equal(hidden[layer], theirs[layer + 1])
    # The last of theirs has been through the final norm; the last layer's output has not.
    assert_close(vlm.components.norm(hidden[vlm.num_layers - 1]), theirs[-1])


@pytest.mark.parametrize("span", SPANS)
def test_an_identity_write_changes_no_bit(vlm, batch, span):
    clean = vlm.logits(batch)
    with write(vlm, 1, lambda h: h, batch[span]):
        assert torch.equal(vlm.logits(batch), clean)


@pytest.mark.parametrize("span", SPANS)
def test_a_write_lands_in_its_span_alone(vlm, batch, span):
    at = batch[span]
    with read(vlm, [1]) as clean:
        vlm.logits(batch)
    with write(vlm, 1, torch.zeros_like, at), read(vlm, [1]) as written:
        vlm.logits(batch)
    assert (written[1][at] == 0).all()
    assert torch.equal(written[1][~at], clean[1][~at])


def test_a_write_does_not_touch_the_state_it_was_given(vlm, batch):
    given = []
    with write(vlm, 0, lambda h: given.append((h, h.clone())) or h * 0, batch["text"]):
        vlm.logits(batch)
    assert torch.equal(*given[0])


def test_contexts_act_in_the_order_they_were_entered(vlm, batch):
    with (
        read(vlm, [1]) as before,
        write(vlm, 1, torch.zeros_like, batch["text"]),
        read(vlm, [1]) as after,
        write(vlm, 1, torch.ones_like, batch["text"]),
    ):
        vlm.logits(batch)
    assert before[1][batch["text"]].any()
    assert not after[1][batch["text"]].any()


def test_hooks_leave_with_their_context_even_through_an_error(vlm, batch):
    before = num_hooks(vlm)
    with pytest.raises(ZeroDivisionError), write(vlm, 0, lambda _: 1 / 0, batch["text"]), read(vlm):
        assert num_hooks(vlm) > before
        vlm.logits(batch)
    assert num_hooks(vlm) == before


def test_gradients_flow_through_a_write_and_stop_at_the_model(vlm, batch):
    adapter = nn.Linear(64, 64)
    with torch.enable_grad(), write(vlm, 1, adapter, batch["text"]):
        vlm.logits(batch)[batch["last"]].logsumexp(-1).sum().backward()
    assert adapter.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in vlm.model.parameters())


def test_a_write_in_float32_is_stored_in_the_streams_dtype():
    vlm = tiny_vlm("llava")
    half = VLM(copy.deepcopy(vlm.model).to(torch.bfloat16), vlm.processor)
    batch = half.encode(*examples())
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    with write(half, 0, lambda h: h.float() * 0, batch["text"]), read(half, [0]) as hidden:
        assert half.logits(batch).dtype == torch.bfloat16
    assert hidden[0].dtype == torch.bfloat16
    assert not hidden[0][batch["text"]].any()


@pytest.mark.parametrize(
    ("layer", "fn", "columns", "message"),
    [
        (0, lambda h: h, slice(1, None), r"has \(batch, pos\) \(3, \d+\), `at` \(3, \d+\)"),
        (0, lambda h: h[:, :1], slice(None), r"fn returned \(3, 1, 64\) for \(3, \d+, 64\)"),
        (4, lambda h: h, slice(None), "layer 4: .* has layers 0 to 3"),
        (-1, lambda h: h, slice(None), "layer -1"),
    ],
)
def test_wrong_writes_are_named(vlm, batch, layer, fn, columns, message):
    with (
        pytest.raises(AttribError, match=message),
        write(vlm, layer, fn, batch["text"][:, columns]),
    ):
        vlm.logits(batch)


# --- attention rows


@pytest.mark.parametrize("num", [1, 3])  # alone: no padding, and for most no mask at all
def test_attention_rows_equal_eager_attention(any_vlm, num):
    batch = any_vlm.encode(*examples(num), padding_side="left")
    eager = copied(any_vlm, attention="eager")
    out = eager.model(**batch.inputs, output_attentions=True, use_cache=False)
    theirs = getattr(out, "language_model_outputs", out).attentions
    for query in (batch["last"].int().argmax(1), batch["text"].int().argmax(1)):
        with attention_rows(any_vlm, query) as rows:
            any_vlm.logits(batch)
        assert len(rows) == len(theirs) == any_vlm.num_layers
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


def test_taps_nest(vlm, batch):
    outer, inner = {}, {}
    with capture_attention(vlm, outer.__setitem__):
        with capture_attention(vlm, inner.__setitem__):
            vlm.logits(batch)
        assert outer.keys() == inner.keys() == set(range(4))
        inner.clear()
        vlm.logits(batch)
    assert not inner


def test_the_attention_function_is_restored(vlm, batch):
    configs = [m.config for m in vlm.model.modules() if hasattr(m, "config")]
    before = [config._attn_implementation for config in configs]
    with pytest.raises(ZeroDivisionError), attention_rows(vlm, batch["last"]):
        assert [config._attn_implementation for config in configs] != before
        raise ZeroDivisionError
    assert [config._attn_implementation for config in configs] == before


def test_attention_that_sdpa_cannot_do_is_refused(monkeypatch):
    vlm = copied(tiny_vlm("llava"))
    batch = vlm.encode(*examples())
    attention = vlm.layers[2].self_attn
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *a, **k: forward(*a, softcap=30.0, **k))
    with (
        pytest.raises(AttribError, match="LlamaAttention uses softcap"),
        attention_rows(vlm, batch["last"]),
    ):
        vlm.logits(batch)


# --- residual writes


def test_residual_writes_are_what_the_submodules_return():
    names = {"llava": ("self_attn", "mlp"), "blip2_opt": ("self_attn", "fc2")}
    names["gemma3"] = ("post_attention_layernorm", "post_feedforward_layernorm")
    for name, children in names.items():
        vlm = tiny_vlm(name)
        batch = vlm.encode(*examples(), padding_side="left")
        seen = {}
        handles = [
            getattr(vlm.layers[2], child).register_forward_hook(
                lambda _m, _a, out, into=seen, child=child: into.update({child: out})
            )
            for child in children
        ]
        with residual_writes(vlm, batch["last"]) as writes:
            vlm.logits(batch)
        for handle in handles:
            handle.remove()
        for child, ours in zip(children, (writes.attn, writes.mlp), strict=True):
            out = seen[child][0] if isinstance(seen[child], tuple) else seen[child]
            assert torch.equal(ours[:, 2], out.reshape(3, -1, 64)[:, -1]), (name, child)


def test_writes_between_layers_are_seen_where_they_are():
    vlm = tiny_vlm("qwen3_vl")  # adds visual features after its first two layers
    batch = vlm.encode(*examples(), padding_side="left")
    for span, expected in (("visual", [True, True, False, False]), ("last", [False] * 4)):
        with residual_writes(vlm, batch[span].int().argmax(1)) as writes:
            vlm.logits(batch)
        assert writes.between_layers.abs().amax((0, 2)).bool().tolist() == expected


def test_a_layer_with_another_wiring_is_named(vlm, batch):
    def third(_module, _args, output):
        return output[0] * 2 if isinstance(output, tuple) else output * 2

    handle = vlm.layers[3].register_forward_hook(third)
    with (
        pytest.raises(AttribError, match=r"layer 3: no two of its submodules \['.*self_attn"),
        residual_writes(vlm, batch["last"]),
    ):
        vlm.logits(batch)
    handle.remove()


def test_positions_are_checked(vlm, batch):
    with pytest.raises(AttribError, match="expected one True per row"):
        residual_writes(vlm, batch["text"]).__enter__()
    num_pos = batch["text"].shape[1]
    with (
        pytest.raises(AttribError, match=f"position {num_pos}: the pass has positions 0 to"),
        residual_writes(vlm, torch.tensor([0, 1, num_pos])),
    ):
        vlm.logits(batch)
    with (
        residual_writes(vlm, batch["last"]) as writes,
        pytest.raises(AttribError, match="run one forward pass inside"),
    ):
        _ = writes.attn


# --- resume


def test_resuming_changed_states_equals_writing_them(any_vlm):
    batch = any_vlm.encode(*examples(), padding_side="left")
    with capture(any_vlm) as captured, read(any_vlm, [1]) as hidden:
        any_vlm.logits(batch)
    noise = torch.randn(hidden[1].shape, generator=torch.Generator().manual_seed(0))
    noise = noise * batch["visual"][..., None]
    with write(any_vlm, 1, lambda h: h + noise, batch["visual"]):
        written = any_vlm.logits(batch)
    resumed = logits_from(any_vlm, captured, 1, hidden[1] + noise)
    assert_close(resumed, written, atol=2e-6, rtol=1e-6)
    assert not torch.equal(resumed, logits_from(any_vlm, captured, 1, hidden[1]))


def test_several_versions_resume_together(any_vlm):
    batch = any_vlm.encode(*examples(), padding_side="right")
    with capture(any_vlm) as captured, read(any_vlm, [0]) as hidden:
        any_vlm.logits(batch)
    versions = [hidden[0], hidden[0] * 1.5]
    together = forward_from(any_vlm, captured, 0, torch.cat(versions))
    alone = torch.cat([forward_from(any_vlm, captured, 0, version) for version in versions])
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_resuming_another_batch_is_refused(vlm, batch):
    with capture(vlm) as captured:
        vlm.logits(batch)
    with pytest.raises(AttribError, match="expected the same shape, or a multiple of its batch"):
        logits_from(vlm, captured, 0, captured.embed[:2])
    with pytest.raises(AttribError, match="run one forward pass inside capture"), capture(vlm) as c:
        logits_from(vlm, c, 0, captured.embed)
