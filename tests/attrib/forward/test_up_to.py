"""A pass that ends early has the states of a whole one, and runs nothing after them."""

import pytest
import torch
from conftest import tiny_vlm

from attrib.forward.hooks import on_output, read
from attrib.forward.up_to import states_up_to
from attrib.model.vlm import VLM


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
