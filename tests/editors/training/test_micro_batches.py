"""A step in parts is the step as a whole; statistics taken in parts are those of all states."""

import numpy as np
import pytest
import tiny_models
import torch
from tiny_edits import samples

from attrib.data.samples import EditRequest, EditSample
from attrib.model.vlm import VLM
from editors.adapters import ChannelStandardizer
from editors.adapters.edit_signal import EMBED
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.methods.lte import LTEConfig
from editors.methods.lte_objective import LowRank, LTEObjective
from editors.training.dataset import StoredDataset, StreamedDataset, cache_dataset
from editors.training.losses import ROLES
from editors.training.prefix_file import PrefixFiles
from editors.training.trainer import Trainer


def uneven(num):
    """Edits whose answers differ in length, and which lack some kinds of input."""
    return [
        EditSample(
            s.id,
            EditRequest(s.request.source, s.request.prompt, "blue " * (i + 1)),
            s.text_generality,
            s.visual_generality * (i % 2),
            s.text_locality,
            s.visual_locality,
        )
        for i, s in enumerate(samples(num))
    ]


@pytest.fixture(scope="module")
def exact():
    """A model in float64: what differs is no rounding."""
    vlm = VLM(*tiny_models.build("llava"))
    vlm.model.double().requires_grad_(False)
    return vlm


def adapters(vlm, kept=None, **options):
    config = AdapterConfig(d_adapter=16, num_heads=2, init="published", batch_size=5, **options)
    sites = config.build(vlm, {"text": [1], "visual": [0]}, seed=0)
    where = {"first": [0], "signals": [EMBED, 0, 1], "roles": ROLES}
    data = cache_dataset(vlm, uneven(5), **where) if kept is None else kept(vlm, where)
    return AdapterObjective(vlm, data, data, config, sites)


def lte(vlm, **options):
    config = LTEConfig(rank=2, batch_size=5, template="{fact} ", **options)
    change = LowRank(vlm, [0, 1], 2, 4.0, seed=1)
    for parameter in change.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = cache_dataset(vlm, uneven(5), first=[], signals=[], roles=ROLES)
    return LTEObjective(vlm, data, data, config, change)


def streamed(vlm, **options):
    """States that are computed anew in each step."""
    return adapters(vlm, lambda *given: StreamedDataset(given[0], uneven(5), **given[1]), **options)


def stored(vlm, folder, **options):
    """States in files."""

    def kept(vlm, where):
        return StoredDataset(vlm, uneven(5), **where, files=PrefixFiles(folder))

    return adapters(vlm, kept, **options)


@pytest.mark.parametrize("make", [adapters, lte, streamed, stored])
def test_the_gradients_of_parts_sum_to_those_of_the_step(make, exact, tmp_path, monkeypatch):
    found, losses, most = [], [], []
    for size in (None, 2, 1):
        torch.manual_seed(0)
        where = {"folder": tmp_path / f"states-{size}"} if make is stored else {}
        objective, logged, asked = make(exact, **where, micro_batch=size), [], []
        plain = objective.losses
        monkeypatch.setattr(objective, "losses", lambda items, rng, plain=plain, asked=asked: (
            asked.append(len(items)) or plain(items, rng)))  # fmt: skip
        log = lambda _, metrics, logged=logged: logged.append(metrics)  # noqa: E731
        trainer = Trainer(objective, objective.config, tmp_path, {}, print, log)
        trainer._add_gradients([0, 3, 2, 4, 1], 0)
        grads = [p.grad.flatten() for p in trainer.parameters if p.grad is not None]
        found.append(torch.cat(grads))
        losses.append(logged[0]["training/loss"])
        most.append(max(asked))
    assert most == [5, 2, 1] and found[0].norm() > 0
    for other, loss in zip(found[1:], losses[1:], strict=True):
        assert (other - found[0]).norm() < 1e-5 * found[0].norm()
        assert loss == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("make", [adapters, lte])
def test_the_held_out_loss_does_not_depend_on_how_edits_are_batched(make, exact, monkeypatch):
    """Edits that differ in tokens and in kinds of input: every answer token counts alike."""
    objective = make(exact)
    whole = objective.validation()
    for size in (4, 2, 1):  # the last batch is smaller, or all are
        monkeypatch.setattr(type(objective), "batch_size", size)
        assert objective.validation() == pytest.approx(whole, rel=1e-5)
    assert len(objective.held_out_batches()) == 5


def test_tokens_are_counted_alike_wherever_the_states_are(exact, tmp_path):
    where = {"first": [0], "signals": [0], "roles": ["request", "visual_generality"]}
    cached = cache_dataset(exact, uneven(5), **where)
    others = (
        StreamedDataset(exact, uneven(5), **where),
        StoredDataset(exact, uneven(5), **where, files=PrefixFiles(tmp_path)),
    )
    for some in ([0], [1, 4], [3, 3]):
        wanted = cached.shares(some, [0, 1, 3, 3, 4], ROLES)
        assert set(wanted) == set(where["roles"])
        assert all(other.shares(some, [0, 1, 3, 3, 4], ROLES) == wanted for other in others)


def test_the_size_of_parts_is_no_part_of_a_trainings_identity():
    one, other = LTEConfig(), LTEConfig(micro_batch=1)
    assert one.training_options == other.training_options and one.settings() == other.settings()


def test_inputs_from_which_nothing_resumes_hold_answers_alone(exact):
    kept = cache_dataset(exact, samples(2), first=[], signals=[], compared=ROLES)
    resumed = cache_dataset(exact, samples(2), first=[1], signals=[1], compared=ROLES)
    for one, other in zip(kept.edits, resumed.edits, strict=True):
        assert torch.equal(one.final, other.final) and other.layer_args
        assert not (one.hidden or one.layer_args or one.added)
        assert one.num_bytes == one.final.nbytes < other.num_bytes
        (_, kwargs) = other.layer_args[0]
        tables = sum(table.nbytes for table in kwargs["position_embeddings"])
        assert other.num_bytes > other.hidden[1].nbytes + other.final.nbytes + tables - 1


def test_units_of_parts_are_those_of_all_states():
    drawn = np.random.default_rng(0).normal(3, 2, (500, 6)) * [1, 10, 1e-4, 1000, 1, 0]
    states = torch.tensor(drawn, dtype=torch.float32)
    states[:, 3] += 1e4  # far from zero
    whole, parts = ChannelStandardizer(6), ChannelStandardizer(6)
    whole.fit([states])
    parts.fit(part for part in states.split([1, 0, 200, 7, 292]))
    means, spreads = states.double().mean(0), states.double().std(0)
    for units in (whole, parts):
        torch.testing.assert_close(units.zero.double(), means, rtol=1e-6, atol=1e-7)
        size = units.size[[0, 1, 3, 4]].double()
        torch.testing.assert_close(size, spreads[[0, 1, 3, 4]], rtol=1e-5, atol=0)
    one = ChannelStandardizer(6)
    one.fit([states[:1]])
    assert torch.equal(one.size, torch.ones(6)) and torch.equal(one.zero, torch.zeros(6))
