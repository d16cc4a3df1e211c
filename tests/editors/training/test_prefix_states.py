"""Passes that resume from prefix states equal the hooked model, on every architecture."""

import torch
from conftest import picture, tiny_vlm
from tiny_edits import memory_of, requests, sites
from torch.testing import assert_close

from attrib.data import EditRequest
from attrib.model.batch import IGNORE_INDEX
from editors.adapters.edit_signal import EMBED
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import select_signals
from editors.training.prefix import collate, prefix_states


@torch.no_grad()
def hooked_logits(vlm, asked, edit=None):
    """What the whole model says at the answer tokens, row by row."""
    batch = vlm.encode(*zip(*[(r.image, r.prompt, r.target) for r in asked], strict=True))
    if edit is None:
        return vlm.logits(batch)[batch.labels != IGNORE_INDEX]
    with edit.applied(vlm):
        return vlm.logits(batch)[batch.labels != IGNORE_INDEX]


def check_against_hooks(vlm, first):
    """Adapters between plain calls of the layers do what hooks do."""
    asked, written = requests(), sites(vlm)
    if vlm.components.patch_size:  # several images in one prompt, where the processor takes them
        asked[2] = EditRequest([picture(40, 60), *asked[2].images], "Which is red?", "the first")
    states = prefix_states(vlm, asked, [EMBED, 0, 1], batch_size=3)
    memory = memory_of(asked[0], states[0], written)
    prefixes = collate(states, first)
    interventions = {}
    for site in written:
        at = site.positions(prefixes.spans)[..., None]
        signal = select_signals([memory], site.key, torch.zeros(len(asked), dtype=torch.long))
        interventions[site.layer] = [
            lambda h, s=site, e=signal, a=at: torch.where(a, s.adapter(h, e), h)
        ]
    with torch.no_grad():
        edited = vlm.unembed(prefixes.run(vlm, interventions))
        clean = vlm.unembed(prefixes.run(vlm, {}))
    want = hooked_logits(vlm, asked, HiddenEdit(written, [memory]))
    plain = hooked_logits(vlm, asked)
    assert_close(edited, want, atol=1e-5, rtol=1e-5)
    assert_close(clean, plain, atol=1e-5, rtol=1e-5)
    assert (want - plain).abs().max() > 0.05


def test_adapters_between_the_later_layers_do_what_hooks_do(different_vlm):
    check_against_hooks(different_vlm, EMBED)


def test_passes_resume_after_a_later_layer_too(different_vlm):
    check_against_hooks(different_vlm, 0)


def test_final_states_are_the_unedited_models(different_vlm):
    asked = requests()
    states = prefix_states(different_vlm, asked, [0])
    with torch.no_grad():
        kept = different_vlm.unembed(torch.cat([q.final for q in states]))
    assert_close(kept, hooked_logits(different_vlm, asked), atol=1e-5, rtol=1e-5)


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
    states = prefix_states(vlm, asked, [0])
    prefixes, memory = collate(states, 0), memory_of(asked[0], states[0], [site])
    signal = select_signals([memory], site.key, torch.zeros(len(asked), dtype=torch.long))
    vlm.unembed(prefixes.run(vlm, {0: [lambda h: site.adapter(h, signal)]})).sum().backward()
    assert site.adapter.up.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in vlm.model.parameters())
