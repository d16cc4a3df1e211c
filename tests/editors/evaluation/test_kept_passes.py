"""Edited passes that go on from the unedited model's states give the answers of whole passes."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_vlm
from planted_editors import Nothing, Writes, sample
from torch import nn

from attrib.forward import kept_pass
from attrib.forward.kept_pass import VERIFIED, KeptPass
from attrib.model.forced_pass import ForcedPass
from editors.base import SequentialEdit, WeightEdit
from editors.evaluation.edited import edited_answers, first_layer
from editors.evaluation.probes import EncodedProbes
from editors.gating.gated_editor import GatedEditor, gate_features
from editors.gating.gates import CosineGate

PROTOCOLS = ("paper", "exact", "generate")


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def last_layer_edit(vlm, scale=2.0):
    """Another output matrix of the last layer's MLP."""
    last = vlm.layers[vlm.num_layers - 1]
    weight = next(m.weight for m in reversed(list(last.modules())) if isinstance(m, nn.Linear))
    name = next(name for name, value in vlm.model.named_parameters() if value is weight)
    return WeightEdit({name: scale * weight.detach()})


def records(answers):
    return [answer.record() for answer in answers]


def whole(vlm, edit, probes):
    with edit.applied(vlm):
        return probes.answers(vlm, causal=True)


@torch.no_grad()
def test_a_pass_from_any_layer_on_equals_the_whole_pass_bit_for_bit(vlm):
    (batch,) = EncodedProbes.of(vlm, sample(0), PROTOCOLS, 16).batches
    forced, kept = KeptPass.run(vlm, batch)
    wanted = ForcedPass.run(vlm, batch)
    assert torch.equal(forced.logits, wanted.logits)
    texts = wanted.texts(6)
    for first in range(vlm.num_layers):
        again = kept.resumed(range(batch.size), batch, first)
        assert torch.equal(again.logits, wanted.logits) and again.texts(6) == texts
    assert forced.texts(6) == texts  # its own keys and values were left alone
    some = kept.resumed([2, 0], batch.only([2, 0]), 1)
    assert torch.allclose(some.logits, wanted.logits[[2, 0]], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [16, 3])
def test_an_edited_weight_of_a_late_layer_answers_as_in_a_whole_pass(vlm, batch_size, monkeypatch):
    edit, probes = last_layer_edit(vlm), EncodedProbes.of(vlm, sample(0), PROTOCOLS, batch_size)
    wanted = records(whole(vlm, edit, probes))
    before = probes.unedited_answers(vlm)
    assert records(before) == records(probes.answers(vlm, causal=True)) != wanted
    monkeypatch.setattr(ForcedPass, "run", None)  # no whole pass is needed
    assert records(edited_answers(vlm, edit, probes, before)) == wanted


@torch.no_grad()
def test_a_gate_reads_the_kept_states_and_decides_once(vlm):
    one = sample(0, " R")
    probes = EncodedProbes.of(vlm, one, PROTOCOLS, 16)
    plain = Writes().edit(vlm, one.request)
    opened = CosineGate(0, -1.0)
    memory = GatedEditor(Nothing(), opened).edit(vlm, one.request).memories[0].features
    scores = opened.scores(gate_features(vlm, opened, probes.batches[0]), [memory])[:, 0]
    gate = CosineGate(0, float(scores.median()))
    gated = replace(plain, memories=[replace(plain.memories[0], gate=memory)], gate=gate)
    wanted = gated.of_rows(vlm, probes.batches[0])
    answers = records(whole(vlm, gated, probes))
    before = probes.unedited_answers(vlm)
    chosen = gated.of_rows(vlm, probes.batches[0], probes.kept[0].hidden)
    assert [e is None for e in chosen] == [e is None for e in wanted] and {*wanted} != {None}
    assert records(edited_answers(vlm, gated, probes, before)) == answers
    assert all(e is None or e.gate is None for e in chosen)


def test_first_layers_of_edits(vlm):
    last, own = vlm.num_layers - 1, last_layer_edit(vlm)
    assert first_layer(vlm, own) == last and first_layer(vlm, object()) == 0
    embedding = vlm.model.get_input_embeddings().weight
    name = next(name for name, value in vlm.model.named_parameters() if value is embedding)
    outside = WeightEdit({name: embedding.detach()})
    assert first_layer(vlm, outside) == 0
    both = WeightEdit({**own.weights, **outside.weights})
    assert first_layer(vlm, both) == first_layer(vlm, SequentialEdit([own, outside])) == 0
    assert first_layer(vlm, SequentialEdit([own, own])) == last
    written = Writes().edit(vlm, sample(0).request)
    assert first_layer(vlm, written) == min(site.layer for site in written.sites)


@torch.no_grad()
def test_what_is_too_large_is_not_kept_and_answers_are_the_same(vlm, monkeypatch):
    edit, probes = last_layer_edit(vlm), EncodedProbes.of(vlm, sample(0), PROTOCOLS, 16)
    wanted = records(whole(vlm, edit, probes))
    monkeypatch.setattr(kept_pass, "LARGEST", 0)
    before = probes.unedited_answers(vlm)
    assert probes.kept == [None]
    assert records(edited_answers(vlm, edit, probes, before)) == wanted


@torch.no_grad()
def test_a_model_whose_passes_do_not_go_on_from_the_middle_runs_whole(vlm, monkeypatch):
    """The control of the test that a model has to pass: keys of the wrong layers."""
    cache = KeptPass._cache
    monkeypatch.delitem(vlm.verified, VERIFIED, raising=False)
    monkeypatch.setattr(KeptPass, "_cache", lambda self, _first, own: cache(self, 0, own))
    edit, probes = last_layer_edit(vlm), EncodedProbes.of(vlm, sample(0), PROTOCOLS, 16)
    before = probes.unedited_answers(vlm)
    assert vlm.verified[VERIFIED] is False and probes.kept == [None]
    assert records(edited_answers(vlm, edit, probes, before)) == records(whole(vlm, edit, probes))
    del vlm.verified[VERIFIED]
