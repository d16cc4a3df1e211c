from dataclasses import replace

import pytest
import torch

from attrib.model.vlm import VLM
from attrib.zoo.models import NUM_LAYERS
from attrib.zoo.training.curriculum import STAGES
from attrib.zoo.training.train import Recipe, Run

RECIPE = Recipe(align_steps=1, rows=2, length=160, warmup=2)


def run(folder, recipe=RECIPE):
    return Run("tiny-llava", folder, recipe, compile=lambda module: module)


def steps(run, count):
    for _ in range(count):
        _, correct = run._step(run._rate())
        run._remember(correct)


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    whole, first, second = (run(tmp_path) for _ in range(3))
    steps(whole, 4)
    steps(first, 2)
    first._save()
    assert second._resume()
    steps(second, 2)
    assert second.progress.step == whole.progress.step
    assert second.progress.accuracy == whole.progress.accuracy
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_resuming_it_would_differ(tmp_path):
    whole, fresh = run(tmp_path), run(tmp_path)
    steps(whole, 3)
    steps(fresh, 2)
    pairs = zip(whole.model.parameters(), fresh.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


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


def test_a_run_has_all_layers_at_first_half_of_them_next_and_all_again_at_last(tmp_path):
    trained = run(tmp_path)
    depths = [VLM(trained.model).num_layers]
    for stage in (0, len(STAGES) - 2):
        depths.append(VLM(mastered(trained, stage).model).num_layers)
    assert depths == [NUM_LAYERS, NUM_LAYERS // 2, NUM_LAYERS]


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
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
