"""The influence mapper: its target is a heatmap, and it is taught on what it is used on."""

import numpy as np
import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples
from torch.testing import assert_close

import attrib
from attrib.errors import AttribError
from editors import VisEdit
from editors.adapters.adapter import EditAdapter
from editors.adapters.edit_signal import EMBED
from editors.methods.influence_objective import ATTRIBUTIONS, mapper_losses, target_heat
from editors.prefix.cached_dataset import cache_dataset

QUICK = {"steps": 3, "batch_size": 4, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.01,
         "preset": "embedded"}  # fmt: skip


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture
def editor(llava, tmp_path):
    return VisEdit.train(llava, samples(6), layers={"visual": [0]}, out=tmp_path, **QUICK)


@pytest.mark.parametrize("target", ATTRIBUTIONS)
def test_the_target_is_the_mean_heatmap_of_later_layers(llava, target):
    sample, how = samples(1)[0], ATTRIBUTIONS[target]
    (heat,) = target_heat(llava, [sample], 0, how)
    batch = llava.encode([sample.request.image], [sample.request.prompt])
    later = list(range(1, llava.num_layers - 1)) or [llava.num_layers - 1]
    want = attrib.heatmaps(llava, batch, later, how.noise, how.unit, site=how.site).mean(1)[0]
    assert torch.allclose(heat["request"][0], want, atol=1e-6)
    assert set(heat) == {"request", "text_generality", "visual_generality"}


def test_the_three_targets_are_different(llava):
    heats = [target_heat(llava, samples(1), 0, how)[0] for how in ATTRIBUTIONS.values()]
    shares = [heat["request"][0] / heat["request"][0].sum() for heat in heats]
    assert len(shares) == 3
    assert min((a - b).abs().max() for a, b in [shares[:2], shares[1:], shares[::2]]) > 1e-4


def test_it_is_taught_on_the_states_it_is_used_on(llava, editor):
    """In the embedded preset an adapter sees embeddings too, and in units: the mapper's must not
    be those of one place when it is taught and of another when it is used."""
    (sample,), (site,) = samples(1), editor.sites
    inputs = []
    site.adapter.mapper.register_forward_pre_hook(lambda _, given: inputs.append(given))
    data = cache_dataset(llava, [sample], first=[0], signals=[EMBED, 0])
    heat = {0: {"request": [torch.ones(int(data.edits[0].spans["visual"].sum()))]}}
    rng = np.random.default_rng(0)
    while not inputs:  # the kind of input is drawn; wait for the request
        mapper_losses(site.adapter, data, heat, [0], 0, editor.config, rng)
    taught, taught_last = inputs[0]
    inputs.clear()
    batch = llava.encode([sample.request.image], [sample.request.prompt], [sample.request.target])
    with torch.no_grad(), editor.edit(llava, sample.request).applied(llava):
        llava.logits(batch)
    used, used_last = inputs[0]
    assert_close(taught_last, used_last, atol=1e-5, rtol=1e-5)
    visual = used[0, batch["visual"][0]]
    near = torch.cdist(taught[0], visual).min(1).values
    assert near.max() < 1e-3 < torch.cdist(visual, visual)[0, 1]
    memory = editor.edit(llava, sample.request).memories[0]
    embedded = memory.signals[site.key].states[0, : llava.d_model]
    assert not torch.allclose(site.adapter.units(embedded), used_last[0], atol=1e-2)  # not those


def test_teaching_it_makes_it_open_for_the_request_and_shut_for_other_inputs(llava, tmp_path):
    longer = {**QUICK, "steps": 40}
    options = {"layers": {"visual": [0]}, "influence": 1.0, **longer}
    taught = VisEdit.train(llava, samples(8), out=tmp_path / "taught", **options)
    ablated = VisEdit.train(
        llava, samples(8), out=tmp_path / "ablated", mapper_terms=("mapper_attribution",), **options
    )
    data = cache_dataset(llava, samples(8), first=[0], signals=[EMBED, 0])

    def margin(editor):
        adapter = editor.sites[0].adapter
        last = torch.stack([q.hidden[0][q.last] for q in data.edits])
        inside, outside = (
            torch.stack([q.hidden[0][q.spans["visual"]] for q in queries])
            for queries in (data.edits, [i["visual_locality"][0] for i in data.inputs])
        )
        with torch.no_grad():
            return (adapter.influence(inside, last) - adapter.influence(outside, last)).mean()

    assert margin(taught) > margin(ablated) + 0.1


def test_an_adapter_without_a_mapper_says_so():
    with pytest.raises(AttribError, match="no influence mapper"):
        EditAdapter(8, 4, 2).influence(torch.zeros(1, 2, 8), torch.zeros(1, 8))


def test_a_target_that_there_is_not_is_refused(llava, tmp_path):
    with pytest.raises(AttribError, match="mapper_target: no 'strong'; expected 'paper', 'pub"):
        VisEdit.train(llava, samples(4), layers={"visual": [0]}, out=tmp_path,
                      **QUICK, mapper_target="strong")  # fmt: skip
