"""The influence mapper: its target is a heatmap, and it is taught on what it is used on."""

import numpy as np
import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples
from torch.testing import assert_close

import attrib
from attrib.errors import AttribError
from attrib.forward.hooks import read, write
from editors import VisEdit
from editors.adapters import EditAdapter
from editors.adapters.edit_signal import EMBED
from editors.methods.adapter_objective import AdapterConfig
from editors.methods.influence_target import ATTRIBUTIONS, INSIDE, target_heat
from editors.methods.visedit import VisEditConfig, mapper_losses
from editors.training.dataset import cache_dataset

QUICK = {"steps": 2, "batch_size": 4, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.03,
         "preset": "embedded", "gate": "none"}  # fmt: skip


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def editor(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("visedit")
    return VisEdit.train(llava, samples(4), layers={"visual": [0]}, out=out, **QUICK)


@pytest.mark.parametrize("target", ATTRIBUTIONS)
def test_the_target_is_the_mean_heatmap_of_later_layers(llava, target):
    sample, how = samples(1)[0], ATTRIBUTIONS[target]
    (heat,) = target_heat(llava, [sample], 0, VisEditConfig(mapper_target=target))
    batch = llava.encode([sample.request.image], [sample.request.prompt])
    later = list(range(1, llava.num_layers - 1)) or [llava.num_layers - 1]
    want = attrib.heatmaps(llava, batch, later, **how).mean(1)[0]
    assert torch.allclose(heat["request"][0][0], want, atol=1e-6)
    assert set(heat) == {"request", "text_generality", "visual_generality"}


def test_the_three_targets_are_different(llava):
    kinds = [VisEditConfig(mapper_target=target) for target in ATTRIBUTIONS]
    heats = [target_heat(llava, samples(1), 0, kind)[0] for kind in kinds]
    shares = [heat["request"][0] / heat["request"][0].sum() for heat in heats]
    assert len(shares) == 3
    assert min((a - b).abs().max() for a, b in [shares[:2], shares[1:], shares[::2]]) > 1e-4


def test_eq_18_puts_the_visual_states_of_an_input_into_the_pass_of_the_edit(llava):
    """By hand: at the one layer, the edit's text states and the other image's visual states."""
    sample = samples(1)[0]
    own, as_written, program = (
        target_heat(llava, [sample], 0, VisEditConfig(mapper_query=query, mapper_mean="after"))[0]
        for query in ("own", "edit", "request")
    )
    other = sample.visual_generality[0]
    batch, shown = (
        llava.encode([image], [sample.request.prompt])
        for image in (sample.request.image, other.image)
    )
    assert other.prompt != "" and as_written["visual_generality"][0].shape[0] == 2  # its layers
    for place, layer in enumerate((1, 2)):
        with read(llava, [layer - 1]) as hidden:
            llava.logits(llava.encode([other.image], [other.prompt]))
        states = hidden[layer - 1][0, : int(shown["visual"].int().argmax()) + shown["visual"].sum()]
        visual = states[-int(shown["visual"].sum()) :]

        def put(h, visual=visual):
            h = h.clone()
            h[batch["visual"]] = visual
            return h

        with write(llava, layer - 1, put, at=batch["visual"]):
            want = attrib.heatmaps(llava, batch, [layer])[0, 0]
        assert_close(as_written["visual_generality"][0][place], want, atol=1e-6, rtol=1e-5)
    assert_close(as_written["request"][0], own["request"][0], atol=1e-6, rtol=1e-5)
    assert_close(program["visual_generality"][0], own["request"][0])  # the published fault
    one, two, three = (h["visual_generality"][0] for h in (own, as_written, program))
    assert min((a - b).abs().max() for a, b in ((one, two), (two, three), (one, three))) > 1e-5


def test_eq_16_sums_over_the_kinds_of_input_where_the_program_draws_one(llava):
    sample, sites = samples(1), AdapterConfig(d_adapter=16, num_heads=2, mapper=True)
    (site,) = sites.build(llava, {"visual": [0]}, 0)
    data = cache_dataset(llava, sample, first=[0], signals=[EMBED, 0])
    heat = dict(enumerate(target_heat(llava, sample, 0, VisEditConfig())))

    def terms(seed=0, **options):
        rng = np.random.default_rng(seed)
        return mapper_losses(site.adapter, data, heat, [0], 0, VisEditConfig(**options), rng)

    drawn = {INSIDE[np.random.default_rng(seed).integers(3)]: terms(seed) for seed in range(30)}
    assert set(drawn) == set(INSIDE)
    every = terms(mapper_inputs="all")
    for name, value in every.items():
        singles = [one[name] for one in drawn.values()]  # of all visual tokens, in some order
        assert_close(value, singles[0] if name == "mapper_down" else sum(singles))


def test_it_is_taught_on_the_states_it_is_used_on(llava, editor):
    """In the embedded preset an adapter sees embeddings too, and in units: the mapper's must not
    be those of one place when it is taught and of another when it is used."""
    (sample,), (site,) = samples(1), editor.sites
    inputs = []
    site.adapter.mapper.register_forward_pre_hook(lambda _, given: inputs.append(given))
    data = cache_dataset(llava, [sample], first=[0], signals=[EMBED, 0])
    heat = {0: {"request": [torch.ones(1, int(data.edits[0].spans["visual"].sum()))]}}
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
    longer = {**QUICK, "steps": 14, "warmup": 0, "validate_every": 14}
    options = {"layers": {"visual": [0]}, "influence": 1.0, **longer}
    some, terms = samples(5), ("mapper_attribution",)
    taught = VisEdit.train(llava, some, out=tmp_path / "taught", **options)
    ablated = VisEdit.train(llava, some, out=tmp_path / "ablated", mapper_terms=terms, **options)
    data = cache_dataset(llava, some, first=[0], signals=[EMBED, 0])

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


@pytest.mark.parametrize("ablated", [{"locality": 0.0}, {"generality": 0.0, "reliability": 0.0}])
def test_the_terms_stay_when_other_terms_have_no_weight(llava, ablated):
    config = VisEdit.config_class.from_preset(llava, "embedded", d_adapter=16, **ablated)
    sites, some = config.build(llava, {"visual": [0]}, seed=0), samples(3)
    roles = VisEdit.needed_roles(config, sites)
    data = cache_dataset(llava, some, first=[0], signals=[EMBED, 0], roles=roles)
    objective = VisEdit.objective(llava, config, sites, data, data, some)
    losses = objective.losses([0, 2], np.random.default_rng(0))
    assert {"mapper_up", "mapper_down", "mapper_attribution"} <= set(losses)
    assert bool("visual_locality" in losses) == bool(config.locality)


def test_an_adapter_without_a_mapper_says_so():
    with pytest.raises(AttribError, match="no influence mapper"):
        EditAdapter(8, 4, 2).influence(torch.zeros(1, 2, 8), torch.zeros(1, 8))


def test_a_target_that_there_is_not_is_refused(llava, tmp_path):
    with pytest.raises(AttribError, match="mapper_target: no 'strong'; expected 'paper', 'pub"):
        VisEdit.train(llava, samples(4), layers={"visual": [0]}, out=tmp_path,
                      **QUICK, mapper_target="strong")  # fmt: skip
