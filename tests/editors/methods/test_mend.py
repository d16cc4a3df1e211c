"""MEND: the identity before training, changes that are what they say, and training that learns."""

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import BOTH, TEXT, asked, assert_restored, logits, loss, state
from tiny_edits import samples
from torch import nn

from attrib.errors import AttribError, SetupError
from editors import WeightEdit
from editors.base import encode_requests
from editors.io import load_edit, save_edit
from editors.methods.mend import MEND, MENDConfig, MENDNetwork, TokenEditor
from editors.weights.components import matrices_of, mlp_of
from editors.weights.passes import (
    LowRankUpdate,
    TokenGradients,
    apply_updates,
    partial_forward,
    token_gradients,
)

QUICK = {"best_by": "loss", "steps": 5, "batch_size": 2,
         "rank": 8, "validate_every": 5, "save_every": 5, "warmup": 0,
         "learning_rate": 3e-3, "preset": "embedded"}  # fmt: skip


def gradient(vlm, request, name):
    """Of the request's mean cross-entropy, by autograd through the whole model."""
    weight = dict(vlm.model.named_parameters())[name]
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    at = batch.labels != -100
    with torch.enable_grad():
        weight.requires_grad_()
        value = nn.functional.cross_entropy(vlm.logits(batch)[at], batch.labels[at])
        (grad,) = torch.autograd.grad(value, [weight])
    weight.requires_grad_(False)
    return grad


@pytest.mark.parametrize("name", BOTH)
def test_before_training_the_change_is_rate_times_gradient(name, tmp_path):
    vlm = tiny_vlm(name)
    before = state(vlm)
    editor = MEND.train(vlm, samples(4), out=tmp_path, **{**QUICK, "steps": 0}, rate=0.5)
    edit = editor.edit(vlm, asked())
    assert_restored(vlm, before)
    assert len(edit.updates) == 6  # two maps of each of three layers
    for key, update in edit.updates.items():
        brute = gradient(vlm, asked(), key)
        assert brute.abs().max() > 0
        torch.testing.assert_close(update.dense[0], 0.5 * brute, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_gradients_of_several_requests_do_not_mix(name):
    vlm = tiny_vlm(name)
    requests = [asked(), asked(3, "green"), TEXT]
    matrices = matrices_of(vlm, [2, 3], "all")
    batch = encode_requests(vlm, requests)
    together = token_gradients(vlm, matrices, partial_forward(vlm, batch, 2), batch.labels)
    for m in matrices:
        of_all = together[m.name].delta.mT @ together[m.name].x
        for got, request in zip(of_all, requests, strict=True):
            torch.testing.assert_close(got, gradient(vlm, request, m.name), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", BOTH)
def test_changes_in_a_pass_are_changes_of_the_matrices(name):
    vlm = tiny_vlm(name)
    generator = torch.Generator().manual_seed(0)
    matrices = matrices_of(vlm, [1, 3], "up_down")
    changes = {
        m.name: LowRankUpdate(*(0.1 * torch.randn(2, 5, d, generator=generator) for d in m.shape))
        for m in matrices
    }
    batch = encode_requests(vlm, [asked(), asked(7)])
    with apply_updates(matrices, changes):
        both = vlm.logits(batch)
    for row in range(2):
        weights = {m.name: m.module.weight + changes[m.name].dense[row] for m in matrices}
        with WeightEdit(weights).applied(vlm):
            alone = vlm.logits(batch)[row]
        torch.testing.assert_close(both[row], alone, rtol=1e-3, atol=1e-4)
        assert (alone - vlm.logits(batch)[row]).abs().max() > 0.1
    dense = next(iter(changes.values()))
    torch.testing.assert_close(dense.mean_square, dense.dense.square().mean((1, 2)))


def test_statistics_are_those_of_all_tokens_seen():
    editor = TokenEditor(6, 1, MENDConfig(rank=2)).train()
    tokens = torch.randn(50, 6) * torch.arange(1, 7) + 3
    for part in tokens.split([1, 20, 0, 29]):
        editor(part, 0)
    editor.eval()
    normed = editor(tokens, 0)
    torch.testing.assert_close(normed.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(0), torch.ones(6), atol=1e-5, rtol=0)
    assert torch.equal(editor(tokens, 0), normed)  # nothing is counted outside of training


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_tokens_are_pooled_and_those_without_a_gradient_left_out(pooling):
    generator = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(2, 4, d, generator=generator) for d in (5, 3))
    delta[0, 2:] = 0
    net = MENDNetwork(
        {"w": (3, 5)},
        MENDConfig(rank=4, normalise=False, pooling=pooling, rate=2.0, rate_lr_multiplier=1.0),
    )
    dense = net({"w": TokenGradients(x, delta)})["w"].dense
    counts = torch.tensor([2.0, 4.0])[:, None, None] if pooling == "mean" else 1
    torch.testing.assert_close(dense, 2 * delta.mT @ x / counts)


def test_training_lowers_the_loss_and_leaves_the_model(tmp_path):
    vlm = tiny_vlm("blip2_opt")
    before = state(vlm)
    editor = MEND.train(vlm, samples(5), out=tmp_path, **QUICK)
    assert_restored(vlm, before)
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.97 * losses[0]
    assert loss(vlm, samples(1)[0].request, editor.edit(vlm, samples(1)[0].request)) < loss(
        vlm, samples(1)[0].request
    )
    for token_editor in editor.net.editors.values():
        assert token_editor.count > 0
        assert any(layer.u.any() for layer in token_editor.layers)


def test_training_goes_on_to_the_same_bits_and_files_give_the_same_edits(tmp_path):
    vlm = tiny_vlm("llava")
    few = {**QUICK, "steps": 2}
    whole = MEND.train(vlm, samples(3), out=tmp_path / "whole", **few)
    again = MEND.train(vlm, samples(3), out=tmp_path / "whole", **few)  # nothing is left to do
    loaded = MEND.load(tmp_path / "whole", vlm)
    edits = [editor.edit(vlm, asked()) for editor in (whole, again, loaded)]
    path = save_edit(edits[0], tmp_path / "edit", vlm, loaded)
    edits.append(load_edit(path, vlm, loaded))
    for edit in edits:
        assert torch.equal(logits(vlm, asked(), edit), logits(vlm, asked(), edits[0]))
    assert loaded.trained["curve"] == whole.trained["curve"]
    with pytest.raises(SetupError, match="whose weights are not those of"):
        MEND.load(tmp_path / "whole", tiny_vlm("blip2_opt"))


def test_edits_together_have_the_sum_of_their_changes(tmp_path):
    vlm = tiny_vlm("llava")
    editor = MEND.train(vlm, samples(4), out=tmp_path, **{**QUICK, "steps": 0}, rate=0.5)
    one, two = editor.edit(vlm, asked()), editor.edit(vlm, asked(3, "green"))
    for name, both in editor.merge([one, two]).updates.items():
        changes = sum(edit.updates[name].dense for edit in (one, two))
        torch.testing.assert_close(both.dense, changes, rtol=1e-4, atol=1e-6)
    # Edits of earlier versions hold the weights themselves.
    weights = dict(vlm.model.named_parameters())
    old = WeightEdit({n: weights[n] + u.dense[0] for n, u in one.updates.items()})
    mixed, whole = editor.merge([old, two]), editor.merge([one, two])
    batch = encode_requests(vlm, [asked()])
    found = []
    for edit in (mixed, whole):
        with edit.applied(vlm), torch.no_grad():
            found.append(vlm.logits(batch))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_settings_choose_matrices_layers_and_terms(tmp_path):
    vlm = tiny_vlm("llava")
    settings = {**QUICK, "steps": 0, "matrices": "all", "reliability": 0.0}
    editor = MEND.train(vlm, samples(4), out=tmp_path, layers={"text": [1], "visual": [0]},
                        **settings)  # fmt: skip
    found = {m.name for i in (0, 1) for m in mlp_of(vlm, i).matrices("all")}
    assert set(editor.edit(vlm, asked()).updates) == found and len(found) == 6
    assert "request" not in editor.trained["curve"][0]
    assert {"text_locality", "visual_locality", "loss"} <= set(editor.trained["curve"][0])
    for changes, said in (
        ({"speed": 3}, "no setting 'speed'; there are .*pooling, rank"),
        ({"mapper_terms": ()}, "no setting 'mapper_terms'"),
        ({"pooling": "max"}, "pooling: no 'max'; expected 'sum' or 'mean'"),
        ({"gate": "learned"}, "takes no gate"),
        ({"layers": [4]}, "there is no layer 4"),
    ):
        with pytest.raises(AttribError, match=said):
            MEND.train(vlm, samples(4), out=tmp_path / "x", **{**QUICK, **changes})
    with pytest.raises(AttribError, match="1 samples are too few"):
        MEND.train(vlm, samples(1), out=tmp_path / "x", **QUICK)


def test_streamed_inputs_give_the_same_training(tmp_path, monkeypatch):
    vlm = tiny_vlm("llava")
    few, some = {**QUICK, "steps": 1, "learning_rate": 1e-4}, samples(4)
    kept = MEND.train(vlm, some, out=tmp_path / "kept", **few)
    monkeypatch.setattr("editors.training.dataset.available_bytes", lambda _device: 0)
    monkeypatch.setattr("editors.training.dataset.SIZED_EDITS", 2)
    streamed = MEND.train(vlm, some, out=tmp_path / "streamed", **few)
    for name, value in kept.net.state_dict().items():
        torch.testing.assert_close(streamed.net.state_dict()[name], value, rtol=1e-3, atol=2e-4)
