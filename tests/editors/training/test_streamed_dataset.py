"""Streamed inputs give the same gradients as cached ones."""

import numpy as np
import pytest
import tiny_models
import torch
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.model.vlm import VLM
from editors import DualEdit, VisEdit
from editors.training import dataset
from editors.training.dataset import CachedDataset, StreamedDataset, cached_or_streamed

SMALL = {"d_adapter": 16, "num_heads": 2, "init": "published"}
LAYERS = {"text": [1], "visual": [0]}
WHERE = {"first": [0], "signals": [0], "roles": ["request", "visual_locality"]}


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def exact():
    """A model in float64, of its own: others use the shared one."""
    vlm = VLM(*tiny_models.build("llava"))
    vlm.model.double().requires_grad_(False)
    return vlm


def gradient(kind, vlm, keep):
    """Gradients of one step of adapters that are not the identity, in one vector."""
    config = kind.config_class.from_preset(vlm, "embedded", own_units=False, **SMALL)
    sites = config.build(vlm, {m: LAYERS[m] for m in kind.modalities}, seed=0)
    where = {"first": [min(site.layer for site in sites)], "signals": [-1, 0, 1]}
    roles, train = kind.needed_roles(config, sites), samples(6)
    data, held = cached_or_streamed(vlm, train, samples(1), **where, roles=roles, keep=keep)
    objective = kind.objective(vlm, config, sites, data, held, train)
    sum(objective.losses([4, 1, 3], np.random.default_rng(0)).values()).backward()
    return torch.cat([p.grad.flatten() for p in objective.module.parameters()])


@pytest.mark.parametrize("kind", [DualEdit, VisEdit])
def test_a_step_has_the_gradients_of_cached_inputs(kind, exact, caplog):
    with caplog.at_level("INFO", logger="attrib"):
        cached, streamed = (gradient(kind, exact, keep) for keep in (True, False))
    # The model runs in float64, adapters in float32.
    assert (streamed - cached).norm() < 1e-5 * cached.norm()
    assert cached.norm() > 0.1
    assert "are recomputed at every step" in caplog.text


@pytest.mark.parametrize(("room", "kind"), [(10**12, CachedDataset), (10**3, StreamedDataset)])
def test_what_does_not_fit_is_not_kept(llava, monkeypatch, room, kind):
    monkeypatch.setattr(dataset, "available_bytes", lambda _device: room)
    data, held = cached_or_streamed(llava, samples(10), samples(2), **WHERE)
    assert type(data) is kind
    assert len(data) == 10
    assert type(held) is CachedDataset


def test_an_edit_has_its_own_inputs_wherever_it_stands(llava):
    streamed = StreamedDataset(llava, samples(6), **WHERE)
    whole, _ = cached_or_streamed(llava, samples(6), samples(1), **WHERE, keep=True)
    for items in ([4, 1], [1, 4], [4, 1, 4]):
        data, at = streamed.load(items)
        for item, place in zip(items, at, strict=True):
            mine, its = data.inputs[place], whole.inputs[item]
            assert torch.allclose(mine["request"][0].final, its["request"][0].final, atol=1e-5)
    different = [q["request"][0].final for q in whole.inputs[:2]]
    assert not torch.allclose(*different, atol=1e-3)
    assert whole.num_bytes > 1000
