"""KE: gated gradients and rank-one terms, conditions of words, and two ways to train."""

import pytest
import torch
from conftest import tiny_vlm
from inner_edits import BOTH, asked, assert_restored, logits, loss, state
from test_mend import gradient
from tiny_edits import samples

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from editors.io import load_edit, save_edit
from editors.methods.ke import KE, KEConfig, KENetwork, condition_of, own_answers

QUICK = {"best_by": "loss", "steps": 5, "batch_size": 2,
         "validate_every": 5, "save_every": 5, "d_lstm": 8,
         "d_condition": 16, "d_head": 16, "learning_rate": 0.04, "warmup": 0,
         "preset": "embedded"}  # fmt: skip


def told(num):
    """Samples that say the old answer."""
    return [
        EditSample(s.id, s.request, s.text_generality, s.visual_generality, s.text_locality,
                   s.visual_locality, s.hard_locality, {"pred": "red one"})
        for s in samples(num)
    ]  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_the_change_is_a_gated_gradient_and_a_rank_one_term(name, tmp_path):
    vlm = tiny_vlm(name)
    before = state(vlm)
    editor = KE.train(vlm, told(4), out=tmp_path, **{**QUICK, "steps": 0})
    edit = editor.edit(vlm, asked(), old="red one")
    assert_restored(vlm, before)
    words = condition_of(vlm, editor.config, asked(), "red one")
    made = [head(editor.net.encode([words]))[0] for head in editor.net.heads]
    assert len(edit.updates) == 6
    for (key, update), numbers in zip(edit.updates.items(), made, strict=True):
        d_out, d_in = before[key].shape
        a, b, c, d, gate = numbers.detach().split([d_out, d_in, d_out, d_in, 1])
        assert 0.3 < gate.sigmoid() < 0.7
        scale = editor.config.max_scale * gate.sigmoid()
        gated = gradient(vlm, asked(), key) * torch.outer(a.softmax(0), b)
        change = update.dense[0]
        rest = change - scale * gated
        torch.testing.assert_close(rest, scale * torch.outer(c.softmax(0), d), rtol=1e-3, atol=1e-5)
        sizes = torch.linalg.svdvals(rest.double())
        assert sizes[0] > 1e-4
        assert sizes[1] < 1e-2 * sizes[0]  # rounding of W + change
        assert torch.linalg.matrix_rank(torch.outer(a.softmax(0), b)) == 1


def test_the_condition_is_old_new_and_prompt():
    vlm = tiny_vlm("llava")
    ids = condition_of(vlm, KEConfig(condition_tokens=100), asked(), "red one")
    text = vlm.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "red one >> blue thing || What is red?"
    assert len(condition_of(vlm, KEConfig(), asked(), "red " * 50)) == 32


def test_the_old_answer_is_the_samples_or_else_the_models_own():
    vlm = tiny_vlm("llava")
    (sample,), (plain,) = told(1), samples(1)
    config = KEConfig(condition_tokens=200)
    own = condition_of(vlm, config, plain.request, own_answers(vlm, [plain])[0])
    said = condition_of(vlm, config, sample.request, "red one")
    assert torch.equal(KE._conditions(vlm, config, [sample])[sample.id], said)
    assert torch.equal(KE._conditions(vlm, config, [plain])[plain.id], own)
    always = KEConfig(condition_tokens=200, old="model")
    assert torch.equal(KE._conditions(vlm, always, [sample])[sample.id], own)
    assert not torch.equal(own, said)


def test_words_decide_and_padding_does_not():
    torch.manual_seed(0)
    net = KENetwork({"w": (3, 5)}, torch.randn(20, 6), KEConfig(d_lstm=4, d_condition=8, d_head=8))
    short, long = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8])
    together = net.encode([short, long])
    for row, words in zip(together, (short, long), strict=True):
        torch.testing.assert_close(row, net.encode([words])[0])
    assert not torch.allclose(together[0], together[1])


def test_training_lowers_the_loss_and_leaves_the_model(tmp_path):
    vlm = tiny_vlm("llava")
    before = state(vlm)
    editor = KE.train(vlm, told(4), out=tmp_path, **QUICK)
    assert_restored(vlm, before)
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert min(losses) < 0.97 * losses[0]
    assert {"text_locality", "visual_generality"} <= set(editor.trained["curve"][0])
    edit = editor.edit(vlm, told(1)[0].request)
    assert loss(vlm, told(1)[0].request, edit) < loss(vlm, told(1)[0].request)
    loaded = KE.load(tmp_path, vlm)
    saved = load_edit(save_edit(edit, tmp_path / "edit", vlm, loaded), vlm, loaded)
    for again in (loaded.edit(vlm, told(1)[0].request), saved):
        assert torch.equal(logits(vlm, asked(), again), logits(vlm, asked(), edit))


def test_the_lagrange_multiplier_rises_while_updates_are_too_large(tmp_path):
    vlm = tiny_vlm("llava")
    editor = KE.train(vlm, told(4), out=tmp_path, loss="ke", **QUICK)
    assert set(editor.trained["curve"][0]) == {"step", "loss", "request"}
    losses = [record["loss"] for record in editor.trained["curve"]]
    assert losses[-1] < losses[0]
    assert editor.net.lagrange_multiplier > 0  # random changes are larger than the margin
    assert editor.net.margin == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["efk", "ke"])
def test_the_recurrent_network_is_in_training_mode_where_gradients_are_needed(
    kind, tmp_path, monkeypatch
):
    """cuDNN refuses the backward pass of an LSTM in any other mode."""
    vlm, modes, encode = tiny_vlm("llava"), set(), KENetwork.encode

    def seen(net, conditions):
        modes.add((torch.is_grad_enabled(), net.lstm.training))
        return encode(net, conditions)

    monkeypatch.setattr(KENetwork, "encode", seen)
    editor = KE.train(vlm, told(4), out=tmp_path, loss=kind, **{**QUICK, "steps": 2})
    editor.edit(vlm, asked(), "red one")
    assert modes == {(True, True), (False, False)}  # steps; validations and edits


def test_edits_together_have_the_sum_of_their_changes(tmp_path):
    vlm = tiny_vlm("llava")
    editor = KE.train(vlm, told(4), out=tmp_path, **{**QUICK, "steps": 0})
    one, two = editor.edit(vlm, asked(), "red"), editor.edit(vlm, asked(3, "green"), "red")
    for name, both in editor.merge([one, two]).updates.items():
        changes = sum(edit.updates[name].dense for edit in (one, two))
        torch.testing.assert_close(both.dense, changes, rtol=1e-3, atol=1e-6)


def test_what_makes_no_sense_is_refused(tmp_path):
    vlm = tiny_vlm("llava")
    for changes, said in (
        ({"speed": 3}, "no setting 'speed'; there are .*condition_tokens"),
        ({"loss": "kl"}, "loss: no 'kl'; expected 'efk' or 'ke'"),
        ({"gate": "learned"}, "takes no gate"),
    ):
        with pytest.raises(AttribError, match=said):
            KE.train(vlm, told(4), out=tmp_path, **{**QUICK, **changes})
