"""A pass that ends early has the states of a whole one, and runs nothing after them."""

from contextlib import ExitStack

import pytest
import torch
from conftest import examples, tiny_vlm
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten

from attrib.forward.hooks import on_output, read
from attrib.forward.replay import capture
from attrib.forward.up_to import states_and_calls, states_up_to
from attrib.model.vlm import VLM
from attrib.model.wrapped import in_place_of


@torch.no_grad()
@pytest.mark.parametrize("layers", [(0,), (2, 0), (3,), ()])
def test_the_states_are_those_of_a_whole_pass_and_no_later_layer_runs(vlm: VLM, batch, layers):
    with read(vlm, layers) as whole:
        logits = vlm.logits(batch)
    ran: list[int] = []
    last = vlm.num_layers - 1
    layers = tuple(min(layer, last) for layer in layers)
    with on_output(vlm.layers[last], lambda _h: ran.append(1)):
        found = states_up_to(vlm, batch, layers)
    assert found.keys() == whole.keys() and all(torch.equal(found[i], whole[i]) for i in whole)
    assert bool(ran) == (not layers or max(layers) == last)
    assert torch.equal(vlm.logits(batch), logits) and vlm.active_batch is None


@torch.no_grad()
def test_where_layers_are_offloaded_the_whole_model_runs(monkeypatch):
    vlm, ran = tiny_vlm("llava"), []
    batch = vlm.encode([None], ["red"])
    monkeypatch.setattr(vlm.model, "hf_device_map", {"": "cpu"}, raising=False)
    with on_output(vlm.layers[vlm.num_layers - 1], lambda _h: ran.append(1)):
        states_up_to(vlm, batch, [0])
    assert ran


@torch.no_grad()
def test_the_calls_of_layers_that_compute_nothing_are_those_of_a_whole_pass(any_vlm):
    batch = any_vlm.encode(*examples(), padding_side="right")
    with capture(any_vlm) as want, read(any_vlm, [1]) as whole:
        logits = any_vlm.logits(batch)
    ran: list[int] = []
    parts = [(i, next(layer.children())) for i, layer in enumerate(any_vlm.layers)]
    with ExitStack() as stack:
        for i, part in parts:
            stack.enter_context(on_output(part, lambda _h, i=i: ran.append(i)))
        hidden, got = states_and_calls(any_vlm, batch, [1])
    assert ran == [0, 1] and torch.equal(hidden[1], whole[1])
    assert torch.equal(got.embed, want.embed) and got.inputs.keys() == want.inputs.keys()
    for i, (before, after) in want.inputs.items():
        assert_close(got.inputs[i][1] - got.inputs[i][0], after - before, rtol=0, atol=1e-6)
    for i in range(any_vlm.num_layers):
        mine, its = (tree_flatten(captured.calls[i]) for captured in (got, want))
        assert mine[1] == its[1]
        for a, b in zip(mine[0], its[0], strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    assert torch.equal(any_vlm.logits(batch), logits)  # all layers are back


@torch.no_grad()
def test_a_forward_of_another_package_comes_back_also_after_an_error():
    vlm, asked = tiny_vlm("llava"), []
    layer, batch = vlm.layers[2], vlm.encode([None], ["red"])
    own = layer.forward
    layer.forward = lambda *args, **kwargs: asked.append(1) or own(*args, **kwargs)
    other = layer.forward
    try:
        with pytest.raises(IndexError), in_place_of([layer], other), in_place_of([layer], min):
            assert layer.forward is min
            raise IndexError
        assert layer.forward is other
        states_and_calls(vlm, batch, [0])
        assert not asked and layer.forward is other
    finally:
        del layer.forward
