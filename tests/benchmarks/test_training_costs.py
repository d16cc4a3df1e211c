"""Parts of the GPU benchmark run at a small size; a training's steps are timed and projected."""

import json

import pytest

from benchmarks import backbone_training, gpu
from benchmarks.gpu import GPU


def test_a_dry_run_of_a_part_writes_its_row_once(tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            gpu.main(["--dry-run", "--only", "sweep text", "--out", str(tmp_path)])
        assert not ended.value.code
    assert capsys.readouterr().out.count(": started") == 1
    (row,) = json.loads((tmp_path / "gpu-dry-run.json").read_text())["rows"]
    assert row["step"] == "sweep text" and row["device"] == "cpu" and row["samples"] == 4
    seconds = row["seconds of them"]
    assert row["minutes for 1,000"] == pytest.approx(1000 * seconds / 4 / 60)
    assert row["device peak MiB"] is None


def test_every_trained_editor_and_every_modality_has_a_part():
    parts = GPU("cpu", dry=True).parts
    assert next(iter(parts)) == "tests"  # a GPU that computes other values is found first
    assert {f"train {name}" for name in gpu.TRAINED} | {
        f"sweep {modality}" for modality in gpu.MODALITIES
    } < set(parts)


class Training:
    """Takes steps of known length on a clock of its own, after a long preparation."""

    def __init__(self, clock, steps):
        self.clock, self.steps = clock, steps

    def train(self, log, log_every):
        assert log_every == 1
        log("9 texts sampled")
        self.clock.now += 100.0
        for step, seconds in enumerate(self.steps, 1):
            self.clock.now += seconds
            log(f"smol-llava step {step} loss 1.0")


class Clock:
    now = 5.0

    def perf_counter(self):
        return self.now


def test_a_trainings_minutes_are_its_preparation_and_the_median_step(monkeypatch):
    monkeypatch.setattr(backbone_training, "time", clock := Clock())
    row = backbone_training.timed(Training(clock, [20.0, 2.0, 2.0, 50.0]), 1_000)
    assert row == {
        "steps": 4,
        "seconds to prepare": 120.0,  # the first step among it
        "seconds per step": 2.0,
        "minutes for 1,000 steps": pytest.approx((120 + 2000) / 60),
    }
