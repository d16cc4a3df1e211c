"""TP: neurons that fire at the edit's tokens and are silent elsewhere, in both kinds of network."""

from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_vlm
from inner_edits import BOTH, asked, assert_restored, logits, loss, state
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError, SetupError
from editors import WeightEdit
from editors.base import encode_requests
from editors.io import load_edit, save_edit
from editors.methods.transformer_patcher import TransformerPatcher, collect_memories
from editors.methods.transformer_patcher_training import (
    TrainablePatch,
    TransformerPatcherConfig,
    memory_loss,
    run_request,
    train_neurons,
)
from editors.weights.components import mlp_of
from editors.weights.neurons import NeuronEdit, Neurons

# Not among `samples`: what a neuron is made for must not be what it is to be silent at.
OWN = EditRequest(picture(seed=77), "Who made the large one?", "blue thing")
QUICK = {
    "steps": 40,
    "num_memories": 60,
    "learning_rate": 0.05,
    "memory_weight": 0.1,
    "preset": "embedded",
}


@pytest.fixture(scope="module", params=BOTH)
def patcher(request, tmp_path_factory):
    """An editor of a model with either kind of feed-forward network."""
    out = tmp_path_factory.mktemp("tp")
    return TransformerPatcher.train(tiny_vlm(request.param), samples(4), out=out, **QUICK)


def start(vlm, config=None):
    """The network, the request and the neurons at the start."""
    network = mlp_of(vlm, vlm.num_layers - 1)
    request = run_request(vlm, network, vlm.num_layers - 1, encode_requests(vlm, [OWN]))
    at = request.x[request.wrong][:5]
    return network, at, TrainablePatch(network, at, config or TransformerPatcherConfig()).neurons


def test_at_the_start_a_neuron_fires_with_one_at_its_token(different_vlm):
    network, at, neurons = start(different_vlm)
    assert 1 < len(at) <= 5
    fired = neurons.activations(at, network.activation)
    torch.testing.assert_close(fired.diagonal(), torch.ones(len(at)), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(fired, torch.ones_like(fired), atol=0.01)
    assert not neurons.biases.any()
    assert 8 < neurons.values.std() < 12  # ten standard normals


def test_copies_of_a_networks_own_neurons_double_its_output(vlm):
    layer = vlm.num_layers - 1
    network = mlp_of(vlm, layer)
    into = [m.module for m in (network.gate, network.up) if m]
    zero = torch.zeros(into[0].out_features)
    copies = Neurons(
        torch.stack([m.weight for m in into]),
        torch.stack([zero if m.bias is None else m.bias for m in into]),
        network.down.module.weight.T,
    )
    doubled = WeightEdit({network.down.name: 2 * network.down.module.weight})
    got = logits(vlm, OWN, NeuronEdit(layer, copies))
    torch.testing.assert_close(got, logits(vlm, OWN, doubled), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(got, logits(vlm, OWN), atol=0.1)


def test_the_answer_becomes_right_and_the_model_stays(patcher):
    vlm = patcher.vlm
    before = state(vlm)
    edit = patcher.edit(vlm, OWN)
    assert_restored(vlm, before)
    assert edit.neurons.values.shape == (5, vlm.d_model)  # all tokens are wrong, five are patched
    assert loss(vlm, OWN, edit) < 0.6 * loss(vlm, OWN)
    with pytest.raises(RuntimeError, match="inside"), edit.applied(vlm):
        raise RuntimeError("inside")
    assert_restored(vlm, before)


def test_there_is_a_neuron_per_wrong_token_and_none_where_all_are_right(patcher):
    vlm = patcher.vlm
    network = mlp_of(vlm, patcher.layer)
    request = run_request(vlm, network, patcher.layer, encode_requests(vlm, [OWN]))
    for num in (0, 2):
        some = replace(request, wrong=request.wrong[:num])
        neurons = train_neurons(
            vlm, network, some, patcher.memories, TransformerPatcherConfig(steps=1)
        )
        assert len(neurons.values) == num
    none = NeuronEdit(
        patcher.layer, TrainablePatch(network, request.x[:0], TransformerPatcherConfig()).neurons
    )
    assert none.num_bytes == 0
    assert torch.equal(logits(vlm, OWN, none), logits(vlm, OWN))


def test_memories_are_what_the_network_sees_at_answers(patcher):
    vlm, config = patcher.vlm, TransformerPatcherConfig(num_memories=50)
    memories = collect_memories(vlm, patcher.layer, samples(4), config)
    assert memories.shape == (50, vlm.d_model)
    assert torch.equal(memories, collect_memories(vlm, patcher.layer, samples(4), config))
    network = mlp_of(vlm, patcher.layer)
    for sample in samples(4):
        request = run_request(vlm, network, patcher.layer, encode_requests(vlm, [sample.request]))
        gaps = torch.cdist(request.x, memories).amin(1)
        assert bool((gaps < 1e-2).all()) or bool((gaps > 0.1).all())
    assert any(  # the first samples of the order are remembered whole
        bool((torch.cdist(
            run_request(vlm, network, patcher.layer, encode_requests(vlm, [s.request])).x, memories
        ).amin(1) < 1e-2).all())
        for s in samples(4)
    )  # fmt: skip


def test_memory_and_activation_losses_are_those_of_the_worst():
    memories = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    neurons = Neurons(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[0.5]]), torch.zeros(1, 2))
    elsewhere, own = torch.tensor([2.5, 0.5, -1.5]), torch.tensor([1.0])
    config = TransformerPatcherConfig(top_memory=2)
    expected = (elsewhere[:2] - 1 + 3).exp().mean() + (elsewhere[:2] + 3).exp().mean()
    torch.testing.assert_close(memory_loss(config, memories)(neurons, own, 0), expected)
    ours = memory_loss(TransformerPatcherConfig(variant="liveedit"), memories)(neurons, own, 0)
    torch.testing.assert_close(ours, elsewhere.relu().exp().mean())


def test_neurons_learn_to_be_silent_at_memories(patcher):
    vlm = patcher.vlm
    _, at, before = start(vlm)
    after = patcher.edit(vlm, OWN).neurons
    told = [(n.pre_activations(at).diagonal().mean(), n.pre_activations(patcher.memories).mean())
            for n in (before, after)]  # fmt: skip
    assert told[1][0] - told[1][1] > told[0][0] - told[0][1] + 0.5


def test_edits_together_are_their_neurons_side_by_side(patcher):
    vlm = patcher.vlm
    one, two = patcher.edit(vlm, OWN), patcher.edit(vlm, asked(3, "no"))
    both = patcher.merge([one, two])
    assert both.num_bytes == one.num_bytes + two.num_bytes
    with one.applied(vlm):
        nested = logits(vlm, OWN, two)
    torch.testing.assert_close(logits(vlm, OWN, both), nested, rtol=1e-4, atol=1e-4)
    with pytest.raises(AttribError, match=r"edits of layers \[0, 3\] cannot be merged"):
        patcher.merge([one, NeuronEdit(0, two.neurons)])


def test_what_is_saved_is_what_is_loaded(patcher, tmp_path):
    vlm = patcher.vlm
    patcher.save(tmp_path / "tp")
    loaded = TransformerPatcher.load(tmp_path / "tp", vlm)
    edit = patcher.edit(vlm, OWN)
    saved = load_edit(save_edit(edit, tmp_path / "edit", vlm, patcher), vlm, loaded)
    for again in (loaded.edit(vlm, OWN), saved):
        assert again.num_bytes == edit.num_bytes
        assert torch.equal(logits(vlm, OWN, again), logits(vlm, OWN, edit))
    with pytest.raises(SetupError, match="whose weights are not those of"):
        TransformerPatcher.load(tmp_path / "tp", tiny_vlm("blip2_llama"))
    with pytest.raises(AttribError, match="neurons are of another model"):
        other = next(name for name in BOTH if name != vlm.name)
        logits(tiny_vlm(other), OWN, edit)


def test_the_variant_from_zero_comes_to_life_in_a_plain_network_alone(tmp_path):
    for name in BOTH:
        vlm = tiny_vlm(name)
        editor = TransformerPatcher.train(
            vlm, samples(2), out=tmp_path, variant="liveedit", num_memories=40
        )
        assert (editor.config.steps, editor.config.max_neurons) == (25, 1)
        edit = editor.edit(vlm, OWN)
        moved = not torch.equal(logits(vlm, OWN, edit), logits(vlm, OWN))
        assert moved == (name == "blip2_opt")


def test_what_makes_no_sense_is_refused(tmp_path):
    vlm = tiny_vlm("llava")
    for changes, said in (
        ({"speed": 3}, "no setting 'speed'; there are .*margin, max_neurons"),
        ({"variant": "unike"}, "variant: no 'unike'; expected 'original' or 'liveedit'"),
        ({"gate": "learned"}, "takes no gate"),
        ({"layers": [1, 2]}, r"tp patches one layer, not \[1, 2\]"),
        ({"layers": [7]}, "there is no layer 7"),
    ):
        with pytest.raises(AttribError, match=said):
            TransformerPatcher.train(vlm, samples(2), out=tmp_path, **changes)
    with pytest.raises(AttribError, match="no sample to remember"):
        TransformerPatcher.train(vlm, [], out=tmp_path)
