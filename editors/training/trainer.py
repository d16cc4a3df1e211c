"""The one training loop: seeded, resumable bit for bit, validated, safe against interruption.

A step's items are drawn from (seed, epoch) and what else is random in it from (seed, step), so a
resumed run sees what an uninterrupted one would have seen. The best weights on held-out data are
kept beside the last ones.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.runs.manifest import diff
from editors.io.tensors import save_tensors
from editors.training.checkpoint import load_checkpoint, read_record, save_checkpoint
from editors.training.distributed import Ranks
from editors.training.losses import share_right
from editors.training.optimizers import optimizers
from editors.training.schedule import Training
from editors.training.stopping import stop_between_steps
from editors.training.watching import Watch

__all__ = ["BEST", "LAST", "Objective", "Progress", "Run", "Shared", "Training"]
BEST, LAST = "best.safetensors", "last.safetensors"


@runtime_checkable
class Objective(Protocol):
    """What is trained, and how well it does."""

    @property
    def module(self) -> nn.Module:
        """What has the parameters."""
        ...

    @property
    def num_items(self) -> int:
        """Number of training items."""
        ...

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The weighted parts of the loss on some items; their sum is minimised."""
        ...

    def validation(self) -> dict[str, float]:
        """Numbers on held-out items; "loss" among them."""
        ...


@runtime_checkable
class Shared(Protocol):
    """An objective that says how much of each part of a step's loss some of its items are.

    Others count as means over items.
    """

    def shares(self, some: Sequence[int], items: Sequence[int]) -> dict[str, float]:
        """By part of the loss; those that are not named go by the number of items."""
        ...


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        best: What the kept weights are best by, the smaller the better and the first number before
            the second; and their step.
        seconds: Spent in steps.
        curve: One record per validation.
    """

    step: int = 0
    best: list[float] = field(default_factory=list)
    best_step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run in a folder.

    Args:
        objective: What is trained.
        training: How.
        out: The folder; what it holds of the same run is gone on from.
        identity: What else makes it the same run (model, data, options); JSON.
        log: Receives one line per validation.
        watch: Given the loss of every step and the numbers of every validation.
        ranks: Which process of how many; by default as torchrun or `accelerate launch` say.
    """

    def __init__(
        self,
        objective: Objective,
        training: Training,
        out: Path,
        identity: dict[str, Any],
        log: Callable[[str], None],
        watch: Watch | None = None,
        ranks: Ranks | None = None,
    ):
        self.ranks = Ranks.of_environment() if ranks is None else ranks
        self.objective, self.training, self.out, self.log = objective, training, out, log
        self.watch = watch if watch is not None and self.ranks.first else lambda *_: None
        self.identity = json.loads(json.dumps({**identity, "training": asdict(training)}))
        self.progress = Progress()
        self.parameters = [p for p in objective.module.parameters() if p.requires_grad]
        self.optimizers = optimizers(training, self.parameters)

    def train(self) -> Progress:
        """Train to the end, from the last checkpoint where there is one; the best weights are in.

        Raises:
            AttribError: The folder holds another run, or the loss is not finite.
            KeyboardInterrupt: As it came, after a checkpoint.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.ranks.wait()  # what one reads, another may go on to write
        if not self.progress.curve:
            self._validate()
        with stop_between_steps() as asked_to_stop:
            while self.progress.step < self.training.steps:
                self.step()
                self._look()
                if self._all_stop(asked_to_stop()):
                    self._save_last()
                    raise KeyboardInterrupt
        self._save_last()
        self.ranks.wait()
        self.objective.module.load_state_dict(load_file(self.out / BEST))
        return self.progress

    def step(self) -> None:
        """Take one step; without validation or checkpoint."""
        began, step, t = time.monotonic(), self.progress.step, self.training
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = t.rate(step)
            optimizer.zero_grad()
        rng = np.random.default_rng([t.seed, 1, step])
        loss = self._loss(t.items(step, self.objective.num_items), rng, step)
        loss.backward()
        self.ranks.sum_gradients(self.parameters)
        if t.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, t.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - began

    def _loss(self, items: Sequence[int], rng: np.random.Generator, step: int) -> Tensor:
        """This process's part of a step's loss."""
        mine = self.ranks.part(items)
        parts = self.objective.losses(mine, rng)
        if self.ranks.world > 1:
            known = self.objective.shares(mine, items) if isinstance(self.objective, Shared) else {}
            share = len(mine) / len(items)
            parts = {name: known.get(name, share) * value for name, value in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        whole = self.ranks.summed(loss.detach())
        if not whole.isfinite():
            self._refuse(step, parts)
        self.watch(step, {"training/loss": whole.item()})
        return loss

    def _all_stop(self, asked: bool) -> bool:
        """Whether any process was asked to stop: they stop behind the same step."""
        return bool(self.ranks.summed(torch.tensor(float(asked), device=self.parameters[0].device)))

    def _refuse(self, step: int, parts: dict[str, Tensor]) -> None:
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in parts.items())
        raise AttribError(
            f"the loss of step {step} is not finite ({values}); the best weights so far are in "
            f"{self.out / BEST}; a smaller learning rate, a warm-up or `clip` would help"
        )

    def _look(self) -> None:
        """Validate and save where it is time."""
        step, t = self.progress.step, self.training
        if step % t.validate_every == 0 or step == t.steps:
            self._validate()
        if step % t.save_every == 0:
            self._save_last()

    def _validate(self) -> None:
        p = self.progress
        with torch.no_grad():
            numbers = self.objective.validation()
        p.curve.append({"step": p.step, **numbers})
        by_loss = self.training.best_by == "loss"
        how_bad = [*([] if by_loss else [-share_right(numbers)]), numbers["loss"]]
        if not p.best or math.isnan(p.best[-1]) or how_bad < p.best:
            p.best, p.best_step = how_bad, p.step
            if self.ranks.first:
                save_tensors(self.out / BEST, self.objective.module.state_dict())
        self.watch(p.step, {f"validation/{name}": value for name, value in numbers.items()})
        if not self.ranks.first:
            return
        shown = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        left = p.seconds / max(1, p.step) * (self.training.steps - p.step)
        self.log(f"step {p.step} of {self.training.steps}, {left:.0f} s left: {shown}")

    def _save_last(self) -> None:
        record = {"identity": self.identity, "progress": asdict(self.progress)}
        if self.ranks.first:
            save_checkpoint(self.out / LAST, self.objective.module, self.optimizers, record)

    def _resume(self) -> None:
        if not (self.out / LAST).exists():
            return
        record = read_record(self.out / LAST)
        if changed := diff(record["identity"], self.identity):
            raise AttribError(
                f"{self.out} holds another training: {'; '.join(changed)}; choose another folder, "
                "or the same settings to go on"
            )
        load_checkpoint(self.out / LAST, self.objective.module, self.optimizers)
        self.progress = Progress(**record["progress"])
