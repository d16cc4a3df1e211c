"""Reading changes nothing, and writing is confined to its span."""

import copy

import pytest
import torch
from conftest import examples, tiny_vlm
from torch import nn
from torch.testing import assert_close

from attrib.errors import AttribError
from attrib.forward.hooks import read, write
from attrib.model.vlm import VLM

SPANS = ("visual", "text", "last")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def copied(vlm):
    return VLM(copy.deepcopy(vlm.model), vlm.processor, vlm.name)


def num_hooks(vlm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())


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
