"""Gates as they are used: one decision per input, on passes and for edits, without the answer."""

import json

import pytest
import torch
from conftest import picture, tiny_vlm
from tiny_edits import memory_of, requests, sites
from torch.testing import assert_close

from attrib.data.samples import EditRequest
from attrib.errors import AttribError, SetupError
from attrib.forward.hooks import read
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import Gate
from editors.gating.classifier import GateNet
from editors.gating.features import GateReader, collect_states
from editors.gating.gates import (
    CosineGate,
    LearnedGate,
    gate_from_config,
    load_gate,
    save_gate,
)
from editors.training.prefix import prefix_states

CLOSE = {"atol": 2e-3, "rtol": 2e-3}  # states pass through half precision on their way


def learned(vlm, layers=(0,), threshold=0.0):
    """A gate that has learned nothing, over standardised states."""
    reader = GateReader(layers, vlm.d_model)
    reader.fit(collect_states(vlm, requests(), reader.layers, reader.raw_states))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GateNet.for_reader(reader, width=8, pools=2, patch=4)
    return LearnedGate(reader, net.eval(), threshold)


GATES = {
    "prompt_last": lambda _vlm: CosineGate(0, 0.9),
    "sequence_last": lambda _vlm: CosineGate(0, 0.9, "sequence_last"),
    "ungated": lambda _vlm: CosineGate(0, -torch.inf),
    "learned": learned,
    "learned, two layers": lambda vlm: learned(vlm, (0, 2)),
}
every_gate = pytest.mark.parametrize("name", GATES)
each_kind = pytest.mark.parametrize("name", ["sequence_last", "learned, two layers"])


def others():
    """The words of the requests about other images, and one about a text alone."""
    changed = [EditRequest(picture(seed=90 + i), r.prompt, "x") for i, r in enumerate(requests(3))]
    return [*changed, EditRequest(None, "nq question: who?", "x")]


def encoded(vlm, asked, targets=False, side="left"):
    given = [r.target for r in asked] if targets else None
    images, prompts = [r.image for r in asked], [r.prompt for r in asked]
    return vlm.encode(images, prompts, given, padding_side=side)


@torch.no_grad()
def states(vlm, gate, batch):
    with read(vlm, gate.layers) as hidden:
        vlm.logits(batch)
    return gate.states(hidden, batch)


def assert_same_states(one, other, **close):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name], **close)


@every_gate
def test_every_gate_keeps_the_protocol(name):
    gate = GATES[name](tiny_vlm("llava"))
    assert isinstance(gate, Gate)
    assert name.startswith(gate.name)


@each_kind
def test_what_is_kept_depends_on_neither_batch_nor_padding(vlm, name):
    gate, asked = GATES[name](vlm), requests()
    alone = [states(vlm, gate, encoded(vlm, [r], targets=True))[0] for r in asked]
    for side in ("left", "right"):
        together = states(vlm, gate, encoded(vlm, asked, targets=True, side=side))
        assert_same_states(together, alone, **CLOSE)
    kept = collect_states(vlm, asked, gate.layers, gate.states, targets=True, batch_size=3)
    assert_same_states(kept, alone, **CLOSE)


@pytest.mark.parametrize("name", ["prompt_last", "learned, two layers"])
def test_what_is_kept_of_an_edit_does_not_depend_on_its_target(different_vlm, name):
    gate, asked = GATES[name](different_vlm), requests()
    prompts = states(different_vlm, gate, encoded(different_vlm, asked))
    for target in ("red", "a much longer answer"):
        edits = [EditRequest(r.source, r.prompt, target) for r in asked]
        assert_same_states(
            states(different_vlm, gate, encoded(different_vlm, edits, True)), prompts, **CLOSE
        )


def test_the_leaking_gate_reads_the_last_target_token(different_vlm):
    gate, asked = CosineGate(1, 0.9, "sequence_last"), requests()
    batch = encoded(different_vlm, asked, targets=True, side="right")
    with read(different_vlm, [1]) as hidden:
        different_vlm.logits(batch)
    ends = batch.inputs["attention_mask"].sum(1) - 1
    wanted = [{"state": h[end].float()} for h, end in zip(hidden[1], ends, strict=True)]
    assert_same_states(gate.states(hidden, batch), wanted)
    edits = [EditRequest(r.source, r.prompt, "red") for r in asked]
    changed = states(different_vlm, gate, encoded(different_vlm, edits, targets=True))
    scores = gate.scores(changed, gate.states(hidden, batch))
    assert (scores.diagonal() < 0.999).all()
    prompt = CosineGate(1, 0.9)
    alone = encoded(different_vlm, asked)
    assert_same_states(states(different_vlm, gate, alone), states(different_vlm, prompt, alone))


def test_cosines_are_cosines(vlm):
    gate = CosineGate(0, 0.5)
    one = states(vlm, gate, encoded(vlm, requests()))
    two = states(vlm, gate, encoded(vlm, others()))
    wanted = torch.nn.functional.cosine_similarity(
        torch.stack([s["state"] for s in one])[:, None],
        torch.stack([s["state"] for s in two])[None],
        dim=-1,
    )
    assert_close(gate.scores(one, two), wanted)


@each_kind
def test_scores_do_not_tell_query_and_edit_apart_and_do_not_depend_on_company(vlm, name):
    gate, asked = GATES[name](vlm), [*requests(), *others()]
    kept = states(vlm, gate, encoded(vlm, asked))
    every = gate.scores(kept, kept)
    assert every.shape == (8, 8)
    assert every.std() > 0
    assert_close(every, every.T, atol=1e-5, rtol=1e-5)
    single = torch.cat([torch.cat([gate.scores([q], [e]) for e in kept], 1) for q in kept])
    assert_close(every, single, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@every_gate
def test_an_edit_behind_a_gate_reaches_the_inputs_it_opens_for_and_no_other(vlm, name):
    gate, asked, written = GATES[name](vlm), [*requests(), *others()], sites(vlm, [(2, "text")])
    batch = encoded(vlm, asked)
    known = states(vlm, gate, encoded(vlm, asked[:1], targets=True))
    scores = gate.scores(states(vlm, gate, batch), [known[0]])[:, 0]
    if name != "ungated":
        gate = _opening(gate, float(scores.sort().values[3:5].mean()))
    query = prefix_states(vlm, asked[:1], [2])[0]
    memory = memory_of(asked[0], query, written, known[0])
    plain, ungated = vlm.logits(batch), HiddenEdit(written, [memory])
    with ungated.applied(vlm):
        served = vlm.logits(batch)
    with HiddenEdit(written, [memory], gate).applied(vlm):
        gated = vlm.logits(batch)
    opened = scores >= gate.threshold
    assert int(opened.sum()) == (8 if name == "ungated" else 4)
    assert torch.equal(gated[~opened], plain[~opened])
    assert_close(gated[opened], served[opened], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(served, plain, atol=1e-3)


def _opening(gate, threshold):
    config = gate.config() | {"threshold": threshold}
    return gate_from_config(config, gate.tensors())


@each_kind
def test_the_decision_is_taken_once_on_the_prompt_when_generating(vlm, name, monkeypatch):
    gate, asked, written = GATES[name](vlm), requests(), sites(vlm, [(2, "text")])
    known = states(vlm, gate, encoded(vlm, asked[:1], targets=True))[0]
    query = prefix_states(vlm, asked[:1], [2])[0]
    memory = memory_of(asked[0], query, written, known)
    calls = []
    find = type(gate).states
    monkeypatch.setattr(
        type(gate), "states", lambda self, *given: calls.append(1) or find(self, *given)
    )
    with HiddenEdit(written, [memory], gate).applied(vlm):
        vlm.generate(encoded(vlm, asked), max_new_tokens=4)
    assert calls == [1]


@each_kind
def test_a_saved_gate_scores_the_same(tmp_path, vlm, name):
    gate, batch = GATES[name](vlm), encoded(vlm, [*requests(), *others()])
    again = load_gate(save_gate(tmp_path / "gate", gate))
    assert (type(again), again.layers, again.threshold) == (
        type(gate), gate.layers, gate.threshold,
    )  # fmt: skip
    assert json.loads(json.dumps(gate.config(), allow_nan=False)) == gate.config()
    kept, known = (states(vlm, g, batch) for g in (gate, again))
    assert torch.equal(gate.scores(kept, kept), again.scores(known, known))


def test_files_that_are_no_gate_are_refused(tmp_path):
    with pytest.raises(SetupError, match=r"no gate\.json"):
        load_gate(tmp_path)
    with pytest.raises(AttribError, match="expected one of cosine, open, learned"):
        gate_from_config({"gate": "iron"}, {})


def test_images_of_other_sizes_are_compared_as_wholes():
    vlm = tiny_vlm("qwen2_vl")
    gate = learned(vlm)
    asked = [
        EditRequest(picture(*size, seed=3), "Is it red?", "x") for size in ((56, 56), (112, 56))
    ]
    kept = states(vlm, gate, encoded(vlm, asked))
    numbers = [len(one["patches"]) for one in kept]
    assert numbers[0] != numbers[1]
    assert gate.scores(kept, kept).isfinite().all()


def test_wide_states_are_projected_alike_after_saving(monkeypatch, tmp_path):
    vlm = tiny_vlm("llava")
    monkeypatch.setattr("editors.gating.features.WIDTHS", {"text": 16, "visual": 8})
    gate = learned(vlm)
    assert gate.net.word.in_features == 16
    again = load_gate(save_gate(tmp_path, gate))
    batch = encoded(vlm, requests())
    assert_same_states(states(vlm, again, batch), states(vlm, gate, batch))
