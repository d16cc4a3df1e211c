"""Edits hold inside their context, reach what they should, and leave nothing behind."""

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import memory_of, requests, sites
from torch.testing import assert_close

from attrib.errors import AttribError
from attrib.forward.hooks import read
from editors.adapters.edit_signal import EditSignal
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import MemoryEntry, select_signals
from editors.base import WeightEdit
from editors.training.prefix import prefix_states


class Words:
    """A gate that knows inputs by how many text tokens they have."""

    layers = (0,)
    threshold = 0.5

    def states(self, _hidden, batch):
        return [{"num": n.float()} for n in batch["text"].sum(1)]

    def scores(self, queries, edits):
        return torch.tensor([[float(q["num"] == e["num"]) for e in edits] for q in queries])


def encoded(vlm, asked, targets=True, side="left"):
    images, prompts = [r.image for r in asked], [r.prompt for r in asked]
    given = [r.target for r in asked] if targets else None
    return vlm.encode(images, prompts, given, padding_side=side)


def memories(vlm, asked, written, gate=None):
    queries = prefix_states(vlm, asked, [0, 1])
    made = []
    for request, query in zip(asked, queries, strict=True):
        kept = gate.states({}, encoded(vlm, [request]))[0] if gate else {}
        made.append(memory_of(request, query, written, kept))
    return made


def state(vlm):
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def assert_same_state(vlm, before):
    for name, value in vlm.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_an_edit_writes_its_span_of_its_layer_and_nothing_before(different_vlm):
    asked = requests()
    (site,) = written = sites(different_vlm, [(1, "text")])
    edit = HiddenEdit(written, memories(different_vlm, asked[:1], written))
    batch = encoded(different_vlm, asked)
    with read(different_vlm, [0, 1]) as clean:
        different_vlm.logits(batch)
    clean = {i: h.clone() for i, h in clean.items()}
    with edit.applied(different_vlm), read(different_vlm, [0, 1]) as edited:
        different_vlm.logits(batch)
    at = site.positions(batch.spans)
    assert torch.equal(edited[0], clean[0])
    assert torch.equal(edited[1][~at], clean[1][~at])
    assert not torch.isclose(edited[1][at], clean[1][at]).all(-1).any()
    with read(different_vlm, [1]) as after:
        different_vlm.logits(batch)
    assert torch.equal(after[1], clean[1])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_input_is_served_its_own_edit_or_none(vlm, side):
    asked, gate, written = requests(), Words(), sites(vlm)
    edit = HiddenEdit(written, memories(vlm, [asked[2], asked[0]], written, gate), gate)
    alone = [HiddenEdit(written, memories(vlm, [asked[i]], written)) for i in (0, 2)]
    batch = encoded(vlm, asked, side=side)
    with edit.applied(vlm):
        together = vlm.logits(batch)
    plain = vlm.logits(batch)
    for row in (1, 3):
        assert torch.equal(together[row], plain[row])
    for row, single in zip((0, 2), alone, strict=True):
        with single.applied(vlm):
            want = vlm.logits(batch)[row]
        assert_close(together[row], want, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[row], plain[row], atol=1e-3)


@torch.no_grad()
def test_the_order_of_edits_does_not_matter(vlm):
    asked, gate, written = requests(), Words(), sites(vlm)
    both = memories(vlm, [asked[0], asked[2]], written, gate)
    batch = encoded(vlm, asked)
    answers = []
    for order in (both, both[::-1]):
        with HiddenEdit(written, order, gate).applied(vlm):
            answers.append(vlm.logits(batch))
    assert torch.equal(*answers)


def test_generating_takes_the_decision_once_on_the_prompt(vlm):
    asked, gate, written = requests(), Words(), sites(vlm)
    edit = HiddenEdit(written, memories(vlm, [asked[0]], written, gate), gate)
    batch = encoded(vlm, asked, targets=False)
    calls = []
    gate.states = lambda hidden, b, found=gate.states: calls.append(1) or found(hidden, b)
    with edit.applied(vlm):
        texts = vlm.generate(batch, max_new_tokens=4)
    assert calls == [1]
    plain = vlm.generate(batch, max_new_tokens=4)
    assert texts[1:] == plain[1:]


@torch.no_grad()
def test_the_first_generated_token_is_that_of_the_edited_logits(vlm):
    asked, written = requests(), sites(vlm)
    edit = HiddenEdit(written, memories(vlm, asked[:1], written))
    batch = encoded(vlm, asked, targets=False)
    with edit.applied(vlm):
        first = vlm.logits(batch)[:, -1].argmax(-1)
        texts = vlm.generate(batch, max_new_tokens=1)
    wanted = [
        t.strip() for t in vlm.tokenizer.batch_decode(first[:, None], skip_special_tokens=True)
    ]
    assert texts == wanted


def test_several_edits_need_a_gate():
    vlm = tiny_vlm("llava")
    written = sites(vlm)
    with pytest.raises(AttribError, match="2 edits together need a gate"):
        HiddenEdit(written, memories(vlm, requests(2), written))


def test_a_pass_that_does_not_tell_its_batch_is_refused():
    vlm = tiny_vlm("llava")
    written = sites(vlm)
    edit = HiddenEdit(written, memories(vlm, requests(1), written))
    batch = encoded(vlm, requests(1))
    with edit.applied(vlm), pytest.raises(AttribError, match=r"vlm\.logits"):
        vlm.model(**batch.inputs)


@torch.no_grad()
def test_weights_come_back_bit_for_bit(vlm):
    name, weight = next(iter(vlm.layers.named_parameters()))
    name = next(n for n, p in vlm.model.named_parameters() if p is weight)
    before, batch = state(vlm), encoded(vlm, requests())
    plain = vlm.logits(batch)
    edit = WeightEdit({name: weight.detach() * 1.5})
    with edit.applied(vlm):
        assert not torch.equal(vlm.logits(batch), plain)
    assert_same_state(vlm, before)
    with pytest.raises(RuntimeError, match="on the way"), edit.applied(vlm):
        raise RuntimeError("on the way")
    assert_same_state(vlm, before)
    assert torch.equal(vlm.logits(batch), plain)
    assert edit.num_bytes == weight.numel() * weight.element_size()


def test_an_edit_of_another_models_weights_is_refused():
    with (
        pytest.raises(AttribError, match="no parameter nowhere"),
        WeightEdit({"nowhere": torch.zeros(1)}).applied(tiny_vlm("llava")),
    ):
        pass


def test_only_the_edits_that_were_picked_are_padded():
    lengths = (3, 90, 5, 1)
    memories = [
        MemoryEntry(None, {"text-1": EditSignal(torch.full((n, 2), 1.0 * n), torch.zeros(2))}, {})
        for n in lengths
    ]
    signals = select_signals(memories, "text-1", torch.tensor([2, 0, 2]))
    assert signals.states.shape == (3, 5, 2) and signals.real.sum(1).tolist() == [5, 3, 5]
    assert signals.states[signals.real].unique().tolist() == [3.0, 5.0]
