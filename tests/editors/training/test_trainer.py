"""The loop: resumed runs are uninterrupted runs, the best weights win, nothing good is lost."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

from attrib.errors import AttribError, SetupError
from editors.training.config import TrainingConfig
from editors.training.objective import Objective
from editors.training.run import TENSORBOARD, tensorboard
from editors.training.trainer import BEST, LAST, Trainer

STEPS = TrainingConfig(steps=12, batch_size=3, learning_rate=0.05, validate_every=4, save_every=5)


class Line(Objective):
    """Fits a line; step by step it can be made to misbehave."""

    def __init__(self, at_step=None):
        torch.manual_seed(0)
        self.module = nn.Linear(2, 1)
        self.x = torch.randn(10, 2)
        self.steps, self.at_step = 0, at_step or {}
        self.seen = []

    num_items = 10

    def losses(self, items, rng):
        self.steps += 1
        self.seen.append(list(items))
        scale = self.at_step.get(self.steps, lambda: 1.0)()
        noise = torch.from_numpy(rng.normal(size=(len(items), 1))).float() * 0.01
        gap = self.module(self.x[list(items)]) - self.x[list(items)].sum(1, keepdim=True) + noise
        return {
            "gap": scale * gap.square().mean(),
            "size": 0.01 * self.module.weight.square().sum(),
        }

    def validation(self):
        gap = self.module(self.x) - self.x.sum(1, keepdim=True)
        return {"loss": gap.square().mean().item()}


def run(out, line=None, config=STEPS, **identity):
    line = line or Line()
    return line, Trainer(line, config, out, identity, lambda _text: None)


def weights(line):
    return torch.cat([p.detach().flatten() for p in line.module.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "number"), [("adam", signal.SIGINT), ("muon", signal.SIGTERM)]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, optimizer, number):
    config = STEPS.changed(optimizer=optimizer)
    whole, going = run(tmp_path / "whole", config=config)
    going.train()

    def stop():
        os.kill(os.getpid(), number)
        return 1.0

    _, going = run(tmp_path / "parts", Line({7: stop}), config)
    with pytest.raises(KeyboardInterrupt):
        going.train()
    assert going.state.step == 7  # the step under way was finished
    resumed, going = run(tmp_path / "parts", config=config)
    progress = going.train()
    assert resumed.steps == 5
    assert torch.equal(weights(resumed), weights(whole))
    assert [r["step"] for r in progress.curve] == [0, 4, 8, 12]


def test_after_a_kill_the_last_checkpoint_is_gone_on_from(tmp_path):
    whole, going = run(tmp_path / "whole")
    going.train()

    def die():
        raise RuntimeError("killed")

    _, going = run(tmp_path / "parts", Line({9: die}))
    with pytest.raises(RuntimeError, match="killed"):
        going.train()
    resumed, going = run(tmp_path / "parts")
    going.train()
    assert resumed.steps == 7  # from step 5 on
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_damaged_checkpoint_is_named_before_anything_is_trained(tmp_path, name):
    run(tmp_path)[1].train()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-4])
    line, going = run(tmp_path)
    with pytest.raises(SetupError, match=rf"{name} is missing or damaged .* delete .*{LAST}"):
        going.train()
    assert not line.seen
    (tmp_path / LAST).unlink()
    assert going.train().step == STEPS.steps


def test_another_run_is_refused_with_what_differs(tmp_path):
    run(tmp_path, model="a")[1].train()
    with pytest.raises(AttribError, match='model: "a" there, "b" now'):
        run(tmp_path, model="b")[1].train()
    faster = STEPS.changed(learning_rate=0.1)
    with pytest.raises(AttribError, match=r"learning_rate: 0.05 there, 0.1 now"):
        run(tmp_path, config=faster, model="a")[1].train()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(tmp_path):
    line, going = run(tmp_path, Line({9: lambda: float("nan")}))
    with pytest.raises(AttribError, match=r"step 8 is not finite \(gap nan, size .*best"):
        going.train()
    assert (tmp_path / BEST).exists()
    assert weights(line).isfinite().all()


def test_the_best_weights_by_validation_win(tmp_path):
    def explode():
        return -100.0  # away from the goal

    line, going = run(tmp_path, Line(dict.fromkeys(range(9, 13), explode)))
    progress = going.train()
    losses = {r["step"]: r["loss"] for r in progress.curve}
    assert progress.best_step == 8
    assert line.validation()["loss"] == pytest.approx(losses[8], rel=1e-6)
    assert losses[12] > losses[8]


def test_the_best_weights_may_be_those_of_highest_accuracy(tmp_path):
    class Rated(Line):
        def validation(self):
            loss = super().validation()["loss"]
            return {"loss": loss, "request": loss, "text_locality": 0.5, "scope": 9.0}

    kept = {}
    for by in ("loss", "accuracy"):
        _, going = run(tmp_path / by, Rated({}), config=STEPS.changed(best_by=by))
        kept[by] = going.train().best_step
    assert kept == {
        "loss": STEPS.steps,
        "accuracy": 0,
    }  # the loss falls, and here the accuracy with it


def test_a_first_validation_that_is_no_number_does_not_stay_the_best(tmp_path):
    class Late(Line):
        validated = 0

        def validation(self):
            self.validated += 1
            return super().validation() if self.validated > 1 else {"loss": float("nan")}

    _, going = run(tmp_path, Late({}))
    assert going.train().best_step == STEPS.steps


def test_muon_turns_matrices_evenly_and_leaves_the_rest_to_adam():
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(6))
    both = STEPS.changed(optimizer="muon").make_optimizers([matrix, bias])
    (matrix * torch.randn(6, 4) * torch.logspace(-1, 0, 4)).sum().backward()
    bias.sum().backward()
    for optimizer in both:
        optimizer.step()
    sizes = torch.linalg.svdvals(matrix.detach())
    assert sizes.max() < 2 * sizes.min()  # though the gradient is ten times larger one way
    torch.testing.assert_close(bias.detach(), torch.full((6,), -0.05))


def test_every_item_comes_once_before_any_comes_again():
    seen = [i for step in range(10) for i in STEPS.items(step, 10)]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_the_rate_rises_and_falls():
    t = TrainingConfig(steps=100, learning_rate=1.0, warmup=10, decay="cosine")
    rates = np.array([t.learning_rate_at(step) for step in range(100)])
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert rates.argmax() in (9, 10)
    assert rates[-1] < 0.001
    assert TrainingConfig(learning_rate=0.3).learning_rate_at(77) == 0.3


def test_every_step_and_validation_is_logged(tmp_path):
    seen = []
    line = Line()
    Trainer(
        line, STEPS, tmp_path, {}, lambda _text: None, lambda *given: seen.append(given)
    ).train()
    steps = [step for step, numbers in seen if "training/loss" in numbers]
    assert steps == list(range(12))
    validated = {step: numbers["validation/loss"] for step, numbers in seen if step % 4 == 0
                 and "validation/loss" in numbers}  # fmt: skip
    assert list(validated) == [0, 4, 8, 12]
    assert validated[12] < validated[0]


def test_tensorboard_reads_what_was_logged(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard(tmp_path) as log_metrics:
        progress = Trainer(Line(), STEPS, tmp_path, {}, lambda _text: None, log_metrics).train()
    read = events.EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    scalars = read.Scalars("validation/loss")
    assert [s.step for s in scalars] == [r["step"] for r in progress.curve]
    assert np.allclose([s.value for s in scalars], [r["loss"] for r in progress.curve])


def test_without_tensorboard_one_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(SetupError, match=r"pip install 'attrib\[tensorboard\]'"),
        tensorboard(tmp_path),
    ):
        pass
