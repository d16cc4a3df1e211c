"""The training loop: seeded, resumable bit for bit, validated, safe against interruption.

A step draws its items from (seed, epoch) and its other random numbers from (seed, step), so that a
resumed run equals an uninterrupted one. The best weights on held-out data are saved beside the
last ones.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.progress import Pace
from attrib.runs.distributed import ProcessGroup
from attrib.runs.manifest import diff
from editors.io import load_checkpoint, read_checkpoint_record, save_checkpoint, save_tensors
from editors.training.config import TrainingConfig, current_names
from editors.training.interruption import finish_step_on_signals
from editors.training.losses import mean_accuracy
from editors.training.objective import Objective

BEST, LAST = "best.safetensors", "last.safetensors"
LogMetrics = Callable[[int, Mapping[str, float]], None]


@dataclass
class TrainingState:
    """Progress of a training.

    Attributes:
        step: Steps done.
        best: What the best weights are selected by (smaller is better, in lexical order).
        best_step: Step of the best weights.
        seconds: Time spent in steps.
        curve: Metrics of each validation, with its step.
    """

    step: int = 0
    best: list[float] = field(default_factory=list)
    best_step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One training in a folder.

    Args:
        objective: What is trained.
        config: The schedule.
        out: The folder; a checkpoint of the same training in it is resumed.
        identity: What else identifies the training (model, data, options), as JSON.
        log: Receives a line per validation, and every 15 seconds between them.
        log_metrics: Receives the step and the loss of every step and the metrics of every
            validation.
        group: The processes that train together; by default those of the environment.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        out: Path,
        identity: dict[str, Any],
        log: Callable[[str], None],
        log_metrics: LogMetrics | None = None,
        group: ProcessGroup | None = None,
    ):
        self.group = ProcessGroup.from_environment() if group is None else group
        self.objective, self.config, self.out, self.log = objective, config, out, log
        self.log_metrics = log_metrics if log_metrics and self.group.is_main else lambda *_: None
        self.identity = json.loads(json.dumps({**identity, "training": config.training_options}))
        self.state = TrainingState()
        self.parameters = [p for p in objective.module.parameters() if p.requires_grad]
        self.optimizers = config.make_optimizers(self.parameters)

    def train(self) -> TrainingState:
        """Train to the end, from the last checkpoint if there is one, and load the best weights.

        Raises:
            AttribError: The folder holds another training, or the loss is not finite.
            KeyboardInterrupt: On Ctrl-C or SIGTERM, after the current step and a checkpoint.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.group.barrier()  # no process overwrites a checkpoint that another still reads
        if not self.state.curve:
            self._validate()
        pace = Pace()
        with finish_step_on_signals() as received:
            while self.state.step < self.config.steps:
                self.step()
                self._validate_and_save_if_due()
                if self.group.is_main and pace.is_due():
                    self.log(self._where())
                flag = torch.tensor(float(bool(received)), device=self.parameters[0].device)
                if self.group.all_reduce(flag):  # all processes stop after the same step
                    self._save_last()
                    raise KeyboardInterrupt(*received[:1])
        self._save_last()
        self.group.barrier()
        self.objective.module.load_state_dict(load_file(self.out / BEST))
        return self.state

    def step(self) -> None:
        """Take one step, without validation or checkpoint."""
        began, step, config = time.monotonic(), self.state.step, self.config
        for optimizer in self.optimizers:
            for param_group in optimizer.param_groups:
                param_group["lr"] = config.learning_rate_at(step)
            optimizer.zero_grad()
        self._add_gradients(self._items(step), step)
        self.group.all_reduce_gradients(self.parameters)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state.step += 1
        self.state.seconds += time.monotonic() - began

    def _add_gradients(self, items: Sequence[int], step: int) -> None:
        """Add the gradients of this process's share of a step's loss."""
        mine, terms = self.group.share(items), dict[str, Tensor]()
        size = self.config.micro_batch or len(mine)
        for start in range(0, len(mine), size):
            some = mine[start : start + size]
            rng = np.random.default_rng([self.config.seed, 1, step])  # all parts draw alike
            part = self._share(some, items, self.objective.losses(some, rng))
            if start + size >= len(mine) and step + 1 < self.config.steps:
                self.objective.expect(self.group.share(self._items(step + 1)))
            torch.stack(list(part.values())).sum().backward()
            for name, value in part.items():
                terms[name] = terms.get(name, 0.0) + value.detach()
        total = self.group.all_reduce(torch.stack(list(terms.values())).sum())
        if not total.isfinite():
            values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise AttribError(
                f"the loss of step {step} is not finite ({values}); the best weights so far are in "
                f"{self.out / BEST}; a smaller learning rate, a warm-up or `clip` would help"
            )
        self.log_metrics(step, {"training/loss": total.item()})

    def _items(self, step: int) -> list[int]:
        return self.config.items(step, self.objective.num_items)

    def _share(
        self, some: Sequence[int], items: Sequence[int], terms: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The part of each term of a step's loss that is due to some of its items."""
        if len(some) == len(items):
            return terms
        known = self.objective.shares(some, items)
        share = len(some) / len(items)
        return {name: known.get(name, share) * value for name, value in terms.items()}

    def _validate_and_save_if_due(self) -> None:
        step, config = self.state.step, self.config
        if step % config.validate_every == 0 or step == config.steps:
            self._validate()
        if step % config.save_every == 0:
            self._save_last()

    def _validate(self) -> None:
        state = self.state
        with torch.no_grad():
            metrics = self.objective.validation()
            self.objective.after_validation(metrics)
        state.curve.append({"step": state.step, **metrics})
        score = [metrics["loss"]]
        if self.config.best_by == "accuracy":
            score.insert(0, -mean_accuracy(metrics))
        if not state.best or math.isnan(state.best[-1]) or score < state.best:
            state.best, state.best_step = score, state.step
            if self.group.is_main:
                save_tensors(self.out / BEST, self.objective.module.state_dict())
        self.log_metrics(state.step, {f"validation/{k}": v for k, v in metrics.items()})
        if not self.group.is_main:
            return
        shown = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.log(f"{self._where()}: {shown}")

    def _where(self) -> str:
        """The step, and the seconds that are left."""
        step, steps = self.state.step, self.config.steps
        seconds = self.state.seconds / max(1, step) * (steps - step)
        return f"step {step} of {steps}" + (f", {seconds:.0f} s left" if step else "")

    def _save_last(self) -> None:
        record = {"identity": self.identity, "progress": asdict(self.state)}
        if self.group.is_main:
            save_checkpoint(self.out / LAST, self.objective.module, self.optimizers, record)

    def _resume(self) -> None:
        if not (self.out / LAST).exists():
            return
        record = read_checkpoint_record(self.out / LAST, self.out / BEST)
        before = current_names(record["identity"])
        if "weights" in before:  # earlier versions wrote those of the mapper for every editor
            weights = self.identity["weights"]
            before["weights"] = {k: v for k, v in before["weights"].items() if k in weights}
        if changed := diff(before, self.identity):
            raise AttribError(
                f"{self.out} holds another training: {'; '.join(changed)}; choose another folder, "
                "or the same settings to resume it"
            )
        load_checkpoint(self.out / LAST, self.objective.module, self.optimizers)
        self.state = TrainingState(**record["progress"])
