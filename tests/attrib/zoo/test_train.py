from dataclasses import replace
from functools import partial

import pytest
import torch

from attrib.zoo import build, decoder_layers, train
from attrib.zoo.curriculum import STAGES
from attrib.zoo.train import Recipe, Run

RECIPE = Recipe(align_steps=1, rows=2, length=100, warmup=2)
DEPTH = 2


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
    monkeypatch.setattr(train, "build", partial(build, num_layers=DEPTH))


def run(folder, recipe=RECIPE):
    return Run("tiny-llava", folder, recipe, compile=lambda module: module)


def steps(run, count):
    for _ in range(count):
        _, correct = run._step(run._rate())
        run._update_accuracy(correct)


def same_weights(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_resumed_run_continues_bit_for_bit_and_a_fresh_one_does_not(tmp_path):
    whole, first, second = (run(tmp_path) for _ in range(3))
    steps(whole, 2)
    steps(first, 1)
    first._save()
    assert second._resume() and same_weights(first, second)
    steps(second, 1)
    assert second.progress == whole.progress and same_weights(second, whole)
    assert not same_weights(first, whole)


def test_a_run_of_another_recipe_is_not_resumed(tmp_path):
    begun = run(tmp_path)
    begun._save()
    with pytest.raises(ValueError, match="another recipe"):
        run(tmp_path, replace(RECIPE, seed=1))._resume()


def test_the_curriculum_advances_when_the_worst_kind_is_mastered_and_not_before(tmp_path):
    trained, said = run(tmp_path), []
    trained.progress.step = 500
    kinds = ("color", "shape", "place", "count", "object")
    trained.progress.accuracy = dict.fromkeys(kinds, 0.95) | {"place": 0.5}
    trained._advance(said.append)
    assert trained.progress.stage == 0
    trained.progress.accuracy["place"] = 0.95
    trained._advance(said.append)
    assert trained.progress.stage == 1
    assert said == ["step 500: mastered 'bare questions', next 'suffix'"]


def test_the_learning_rate_falls_to_zero_only_in_the_last_stage(tmp_path):
    trained = run(tmp_path)
    trained.progress.step = 10_000
    assert trained._rate() == 1
    trained.progress.stage, trained.progress.stage_began = len(STAGES) - 1, 9_000
    r = RECIPE
    assert trained._rate() == pytest.approx(1 - (1000 - r.hold) / r.decay)
    trained.progress.step = 9_000 + r.hold + r.decay
    assert trained._rate() == 0


def mastered(run, stage):
    """The run at the end of a stage, all of which is mastered."""
    run.progress.stage, run.progress.stage_began, run.progress.step = stage, 0, 1000
    run.progress.accuracy = dict.fromkeys(STAGES[stage].kinds, 0.99)
    run._advance(str)
    return run


def test_depth_is_full_then_half_then_full(tmp_path):
    trained = run(tmp_path)
    depths = [len(decoder_layers(trained.model))]
    for stage in (0, len(STAGES) - 2):
        depths.append(len(decoder_layers(mastered(trained, stage).model)))
    assert depths == [DEPTH, DEPTH // 2, DEPTH]


@pytest.mark.parametrize("stages", [[0], [0, len(STAGES) - 2]], ids=["shrunk", "grown"])
def test_a_run_of_another_depth_is_resumed_bit_for_bit(tmp_path, stages):
    whole, second = run(tmp_path), run(tmp_path)
    for stage in stages:
        mastered(whole, stage)
    steps(whole, 1)
    whole._save()
    assert second._resume()
    for each in (whole, second):
        steps(each, 1)
    assert same_weights(whole, second)
