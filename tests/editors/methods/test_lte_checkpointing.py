"""LTE with activation checkpointing: the same gradients, less kept, and the model as it was."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import tiny_vlm
from logical_devices import logical_devices, offloaded, split
from tiny_edits import samples
from torch.utils.checkpoint import CheckpointError

from attrib.model.vlm import VLM
from attrib.model.wrapped import on_modules
from editors.evaluation.reference_model import Checksum
from editors.methods.lte import LTE, LTEConfig
from editors.methods.lte_objective import AllLayers, LowRank, LTEObjective
from editors.training.dataset import cache_dataset

KINDS = ("low_rank", "all")
QUICK = {"preset": "embedded", "steps": 3, "batch_size": 2, "rank": 2, "validate_every": 3,
         "save_every": 3, "warmup": 0, "optimizer": "adam", "learning_rate": 1e-3,
         "template": "{fact} "}  # fmt: skip


def objective(vlm, kind, recompute, layers=None):
    """The loss of a change that does something."""
    layers = range(vlm.num_layers) if layers is None else layers
    change = AllLayers(vlm, layers) if kind == "all" else LowRank(vlm, layers, 2, 4.0, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in change.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.1 * noise.to(parameter.device)
    config = LTEConfig(parameters=kind, template="{fact} ", checkpoint_activations=recompute)
    data = cache_dataset(vlm, samples(3), first=[], signals=[], roles=["request", *config.roles])
    return LTEObjective(vlm, data, data, config, change)


def loss(made):
    """The loss of a step on three edits."""
    terms = made.losses([0, 1, 2], np.random.default_rng(0))
    return torch.stack(list(terms.values())).sum()


def gradients(made):
    """The loss and the gradients of a step, by name."""
    made.module.zero_grad()
    value = loss(made)
    value.backward()
    return value, {n: p.grad.clone() for n, p in made.module.named_parameters()}


def place(tensor):
    """Where the numbers of a tensor are."""
    return tensor.untyped_storage().data_ptr()


def assert_as_it_was(vlm, before):
    assert not before.changes(Checksum.of(vlm.model))  # classes of modules, and bits
    assert not any("forward" in vars(layer) for layer in vlm.layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_without_it_and_the_model_keeps_its_bits(different_vlm, kind, dtype):
    model = copy.deepcopy(different_vlm.model).to(dtype)
    vlm = VLM(model, different_vlm.processor)
    before = Checksum.of(vlm.model)
    made = [objective(vlm, kind, recompute) for recompute in (False, True)]
    (plain, wanted), (value, found) = (gradients(one) for one in made)
    assert torch.equal(value, plain)
    assert wanted.keys() == found.keys() and sum(g.abs().sum() for g in wanted.values()) > 0
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())
    assert_as_it_was(vlm, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(  # PyTorch leaves the logical devices in the backward pass
    ("where", "recompute"), [("disk", False), ("disk", True), ("split", False)]
)
def test_gradients_of_a_model_that_is_offloaded_or_split_are_those_of_the_whole(
    kind, where, recompute, tmp_path
):
    whole = tiny_vlm("llava")
    _, wanted = gradients(objective(whole, kind, False, [1, 2]))
    vlm = split(whole) if where == "split" else offloaded(whole, "disk", tmp_path)
    homes = {name: value.device for name, value in vlm.model.named_parameters()}
    with logical_devices() if where == "split" else nullcontext():
        _, found = gradients(objective(vlm, kind, recompute, [1, 2]))
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name].cpu(), grad, rtol=1e-4, atol=1e-7)
    # Also those that were loaded for the second run of a layer are freed.
    assert homes == {name: value.device for name, value in vlm.model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_without_the_change_is_noticed(kind, monkeypatch):
    """A control: what is applied around the forward pass alone is missing in the backward pass."""
    made = objective(tiny_vlm("llava"), kind, True)
    call, done = made.module.call, []

    def first_time(vlm, layer, fn):
        done.append(layer)
        return call(vlm, layer, fn) if len(done) <= 2 * vlm.num_layers else fn()

    monkeypatch.setattr(made.module, "call", first_time)
    value = loss(made)  # in two passes, of the inputs with an image and of those without
    with pytest.raises(CheckpointError):
        value.backward()
    assert len(done) > 2 * made.vlm.num_layers


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_error_in_the_backward_pass_the_model_is_as_it_was(kind):
    vlm = tiny_vlm("llava")
    made, before = objective(vlm, kind, True), Checksum.of(vlm.model)
    value, runs = loss(made), []

    def planted(*_):
        runs.append(1)
        raise RuntimeError("planted")

    inside = vlm.layers[1].get_submodule("mlp").register_forward_hook(planted)
    with pytest.raises(RuntimeError, match="planted"):
        value.backward()
    inside.remove()
    assert runs == [1]  # of the second run
    assert_as_it_was(vlm, before)


def kept_by(made):
    """What the forward pass of a step keeps for the backward pass.

    Returns the total of bytes, weights aside; which inputs of layers are kept, and which outputs
    of modules inside layers.
    """
    vlm, inputs, inside, sizes = made.vlm, [], [], {}
    weights = {place(one) for one in (*vlm.model.parameters(), *made.module.parameters())}
    modules = [m for layer in vlm.layers for m in layer.modules() if not [*m.children()]]

    def keep(tensor):
        if place(tensor) not in weights:
            sizes[place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        on_modules([(layer, lambda h, *_: inputs.append(h)) for layer in vlm.layers],
                   [(module, inside.append) for module in modules]),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):  # fmt: skip
        value = loss(made)
    assert value.requires_grad
    return sum(sizes.values()), *([place(h) in sizes for h in some] for some in (inputs, inside))


@pytest.mark.parametrize("kind", KINDS)
def test_of_each_layer_only_its_input_is_kept(kind):
    made = {recompute: objective(tiny_vlm("llava"), kind, recompute) for recompute in (False, True)}
    most, _, inside = kept_by(made[False])  # a control
    assert sum(inside) > len(inside) / 4
    least, inputs, inside = kept_by(made[True])
    assert all(inputs) and not any(inside)
    assert least < most / 4


def test_a_training_is_the_same_with_it_and_can_go_on_without_it(tmp_path):
    vlm = tiny_vlm("llava")
    editors = [
        LTE.train(vlm, samples(4), out=tmp_path / out, checkpoint_activations=recompute, **QUICK)
        for out, recompute in (("without", False), ("with", True), ("with", False))
    ]
    first, *others = (editor.change.state_dict() for editor in editors)
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())
    assert "checkpoint_activations" not in editors[1].config.settings()
    assert LTE.load(tmp_path / "with", vlm).config == editors[0].config
