"""Conflicting edits: of one picture and question the newest wins, and any of them is unlearned."""

import pytest
import torch
from conftest import tiny_vlm
from test_router import Words, encoded, memories
from tiny_edits import requests, sites
from torch.nn.functional import normalize

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from editors.adapters.lookup import index_of, nearest
from editors.adapters.router import HiddenEdit
from editors.gating.classifier import PATCHES, GateNet
from editors.gating.features import GateReader
from editors.gating.gates import STATE, CosineGate, LearnedGate


def gates():
    """Gates with the features of 100 random inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        states = [{STATE: torch.randn(32)} for _ in range(100)]
        reader = GateReader([0], 32, 0)
        net = GateNet.for_reader(reader).eval()
        unit = [normalize(torch.randn(n, 64), dim=-1) for n in (100, 100)]
        patches = [normalize(torch.randn(9, 32), dim=-1) for _ in range(100)]
    learned = [
        {"text_embedding": text, "image_embedding": image, PATCHES: patch}
        for text, image, patch in zip(*unit, patches, strict=True)
    ]
    yield CosineGate(0, -1.0), states
    yield LearnedGate(reader, net, -torch.inf), learned


@pytest.mark.parametrize("which", [0, 1])
def test_the_newest_of_two_edits_of_one_input_wins_in_100_of_100(which):
    gate, features = list(gates())[which]
    held = [*features, *features]  # each edited again, in the same order
    found = nearest(gate, features, held)
    alone = nearest(gate, features, features)
    assert (found >= 100).all() and torch.equal(found - 100, alone)
    assert torch.equal(index_of(gate, held).nearest(features), found)
    assert nearest(gate, features, []).tolist() == [-1] * 100


@torch.no_grad()
def test_the_newest_edit_answers_and_each_is_unlearned_bit_for_bit():
    vlm = tiny_vlm("llava")
    (one, _, other, _), gate, written = requests(), Words(), sites(vlm)
    again = EditRequest(one.source, one.prompt, "red")
    held = memories(vlm, [one, other, again], written, gate)
    batch = encoded(vlm, [one, other, requests()[3]], targets=False)

    def answers(edit):
        with edit.applied(vlm):
            return vlm.logits(batch)

    every = HiddenEdit(written, held, gate)
    newest, oldest = (HiddenEdit(written, some, gate) for some in (held[1:], held[:2]))
    assert torch.equal(answers(every), answers(newest))
    assert not torch.equal(answers(newest)[0], answers(oldest)[0])
    assert torch.equal(answers(every.without(again)), answers(oldest))  # as before that edit
    assert torch.equal(answers(every.without(one)), answers(every))
    none = every.without(one).without(again).without(other)
    assert torch.equal(answers(none), vlm.logits(batch))
    with pytest.raises(AttribError, match=r"no edit of EditRequest.* to remove"):
        newest.without(one)
