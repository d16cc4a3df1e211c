"""Passes that resume from prefix states equal the hooked model, on every architecture."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from conftest import picture, tiny_vlm
from tiny_edits import memory_of, requests, samples, sites
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from attrib.data import EditRequest
from attrib.forward.hooks import on_output
from attrib.model.batch import IGNORE_INDEX
from editors.adapters.edit_signal import EMBED
from editors.adapters.router import HiddenEdit
from editors.adapters.sites import select_signals
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.training.dataset import cache_dataset
from editors.training.layer_args import KEPT, SharedTensors
from editors.training.losses import LOCALITY, ROLES
from editors.training.prefix import collate, num_bytes, prefix_states


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


def test_inputs_that_do_not_run_to_the_end_have_the_same_states(any_vlm):
    asked = requests()
    whole, short = (prefix_states(any_vlm, asked, [EMBED, 1], final=f) for f in (True, False))
    for one, other in zip(short, whole, strict=True):
        assert one.final is None and other.final is not None
        assert one.num_asked == other.num_asked == len(other.final)
        assert one.added.keys() == other.added.keys()
        bare = (vars(replace(q, added={}, final=None)) for q in (one, other))
        for a, b in zip(*(tree_leaves(fields) for fields in bare), strict=True):
            assert torch.equal(a, b) if torch.is_tensor(a) else a == b
        for layer, h in one.added.items():
            assert_close(h, other.added[layer], rtol=0, atol=1e-6)


def tables(inputs):
    """The storages of the layers' arguments."""
    leaves = tree_leaves([one.layer_args for one in inputs])
    return [leaf.untyped_storage() for leaf in leaves if torch.is_tensor(leaf)]


def test_equal_arguments_of_layers_are_held_once(any_vlm, monkeypatch):
    asked = requests() + requests()
    shared = prefix_states(any_vlm, asked, [0], batch_size=3)
    monkeypatch.setattr(SharedTensors, "copy", lambda _self, tensor: tensor.clone())
    single = prefix_states(any_vlm, asked, [0], batch_size=3)
    for one, other in zip(shared, single, strict=True):
        for a, b in zip(*(tree_leaves(vars(q)) for q in (one, other)), strict=True):
            assert not torch.is_tensor(a) or torch.equal(a, b)
    held = [{part.data_ptr() for part in tables(some)} for some in (shared, single)]
    assert 2 * len(held[0]) <= len(held[1])  # every input comes twice
    args = [num_bytes([replace(q, hidden={}, added={}, final=None) for q in some])
            for some in (shared, single)]  # fmt: skip
    assert args[0] == sum({p.data_ptr(): p.nbytes() for p in tables(shared)}.values())
    assert 2 * args[0] <= args[1] or not args[1]


def test_what_begins_alike_is_a_view_and_what_differs_is_a_copy():
    shared, table = SharedTensors(), torch.arange(24.0).reshape(1, 6, 4)
    whole = shared.copy(table)
    assert whole.data_ptr() != table.data_ptr()
    for part in (table, table[:, :3], table[:, :3].clone()):
        found = shared.copy(part)
        assert torch.equal(found, part) and found.data_ptr() == whole.data_ptr()
    for part in (table[:, 1:], table.double(), table.expand(2, 6, 4), torch.ones(1, 7, 4)):
        found = shared.copy(part)
        assert torch.equal(found, part) and found.dtype == part.dtype
        assert found.data_ptr() not in (whole.data_ptr(), part.data_ptr())
    for i in range(KEPT):
        shared.copy(table + i + 1)
    assert shared.copy(table).data_ptr() != whole.data_ptr()  # the search is bounded


def test_only_inputs_that_are_compared_run_to_the_end():
    vlm, some = tiny_vlm("llava"), samples(3)
    ran: dict[int, int] = {}

    def count(layer):
        return lambda h: ran.update({layer: ran.get(layer, 0) + len(h)})

    def rows(**options):
        ran.clear()
        with ExitStack() as stack:
            for i, layer in enumerate(vlm.layers):
                stack.enter_context(on_output(layer.mlp, count(i)))
            data = cache_dataset(vlm, some, **{"first": [0], "signals": [0, 1]} | options)
        known = {role for q in data.inputs for role in q if q[role][0].final is not None}
        return [ran.get(i, 0) for i in range(vlm.num_layers)], known

    # 3 requests with states at layer 1, 6 inputs with their answer, 9 others.
    assert rows() == ([18, 12, 9, 9], set(LOCALITY))
    assert rows(compared=ROLES) == ([18, 18, 18, 18], set(ROLES))
    assert rows(first=[], signals=[]) == ([9, 9, 9, 9], set(LOCALITY))
    assert rows(roles=["request", "text_generality"]) == ([6, 3, 0, 0], set())


def test_losses_need_no_answers_of_the_unedited_model_but_those_that_are_compared():
    vlm, some = tiny_vlm("llava"), samples(3)
    config = AdapterConfig(d_adapter=16, num_heads=2, init="published")
    found = []
    for compared in (LOCALITY, ROLES):
        data = cache_dataset(vlm, some, first=[0], signals=[EMBED, 0], compared=compared)
        objective = AdapterObjective(vlm, data, data, config, config.build(vlm, {"text": [0]}, 0))
        clean = objective.tokens(data, [0, 1])["clean"].isnan().all(-1)
        found.append((objective.losses([0, 1], np.random.default_rng(0)), objective.validation()))
        assert bool(clean.any()) == (compared == LOCALITY) and not clean.all()
    (losses, metrics), (all_losses, all_metrics) = found
    assert losses.keys() == all_losses.keys() == set(objective.roles) and metrics == all_metrics
    assert all(torch.equal(losses[role], all_losses[role]) for role in losses)


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
