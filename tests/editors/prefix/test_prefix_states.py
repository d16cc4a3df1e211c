"""Going on from kept states is what the hooked model does, on every architecture."""

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import memory_of, requests, sites
from torch.testing import assert_close

from attrib.model.batch import IGNORE_INDEX
from editors.adapters.edit_signal import EMBED
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import select_signals
from editors.prefix.states import collate, prefix_states


@torch.no_grad()
def hooked_logits(vlm, asked, edit=None):
    """What the whole model says at the answer tokens, row by row."""
    batch = vlm.encode(*zip(*[(r.image, r.prompt, r.target) for r in asked], strict=True))
    if edit is None:
        return vlm.logits(batch)[batch.labels != IGNORE_INDEX]
    with edit.applied(vlm):
        return vlm.logits(batch)[batch.labels != IGNORE_INDEX]


@pytest.mark.parametrize("first", [EMBED, 0])
def test_adapters_between_the_later_layers_do_what_hooks_do(any_vlm, first):
    asked, written = requests(), sites(any_vlm)
    queries = prefix_states(any_vlm, asked, [EMBED, 0, 1], batch_size=3)
    memory = memory_of(asked[0], queries[0], written)
    prefixes = collate(queries, first)
    interventions = {}
    for site in written:
        at = site.positions(prefixes.spans)[..., None]
        signal = select_signals([memory], site.key, torch.zeros(len(asked), dtype=torch.long))
        interventions[site.layer] = [
            lambda h, s=site, e=signal, a=at: torch.where(a, s.adapter(h, e), h)
        ]
    with torch.no_grad():
        edited = any_vlm.unembed(prefixes.run(any_vlm, interventions))
        clean = any_vlm.unembed(prefixes.run(any_vlm, {}))
    want = hooked_logits(any_vlm, asked, HiddenEdit(written, [memory]))
    plain = hooked_logits(any_vlm, asked)
    assert_close(edited, want, atol=1e-5, rtol=1e-5)
    assert_close(clean, plain, atol=1e-5, rtol=1e-5)
    assert (want - plain).abs().max() > 0.05


def test_final_states_are_the_unedited_models(any_vlm):
    asked = requests()
    queries = prefix_states(any_vlm, asked, [0])
    with torch.no_grad():
        kept = any_vlm.unembed(torch.cat([q.final for q in queries]))
    assert_close(kept, hooked_logits(any_vlm, asked), atol=1e-5, rtol=1e-5)


def test_batches_do_not_matter():
    vlm, asked = tiny_vlm("llava"), requests()
    one, three = (prefix_states(vlm, asked, [0], batch_size=n) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert_close(a.hidden[0], b.hidden[0])
        assert torch.equal(a.labels, b.labels)
        assert {k: v.tolist() for k, v in a.spans.items()} == {
            k: v.tolist() for k, v in b.spans.items()
        }


def test_gradients_reach_the_adapter_and_not_the_model():
    vlm = tiny_vlm("llava")
    for parameter in vlm.model.parameters():
        parameter.requires_grad_(False)
    asked, (site,) = requests(), sites(vlm, [(0, "text")])
    queries = prefix_states(vlm, asked, [0])
    prefixes, memory = collate(queries, 0), memory_of(asked[0], queries[0], [site])
    signal = select_signals([memory], site.key, torch.zeros(len(asked), dtype=torch.long))
    vlm.unembed(prefixes.run(vlm, {0: [lambda h: site.adapter(h, signal)]})).sum().backward()
    assert site.adapter.up.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in vlm.model.parameters())
