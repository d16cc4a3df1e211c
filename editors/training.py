"""The one training loop: seeded, resumable bit for bit, validated, safe against interruption.

A step's items are drawn from (seed, epoch) and what else is random in it from (seed, step), so a
resumed run sees what an uninterrupted one would have seen. The best weights by validation loss are
kept beside the last ones.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.files import write_text
from editors.stopping import stop_between_steps
from editors.tensors import save_tensors

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "training.json"


@dataclass(frozen=True)
class Training:
    """How an editor is trained; the defaults are the papers' (reference: VisEdit App. B.4).

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Edits in a step.
        learning_rate: Of Adam, at its highest.
        warmup: Steps over which it rises.
        decay: "constant", or "cosine" to zero at the last step.
        clip: Largest norm of the gradient; None for any.
        seed: Of the order of edits and everything else that is random.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints to resume from.
    """

    steps: int = 50_000
    batch_size: int = 4
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    seed: int = 0
    validate_every: int = 500
    save_every: int = 500

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * rising * (falling if self.decay == "cosine" else 1.0)

    def items(self, step: int, num: int) -> list[int]:
        """Which of `num` items a step is about: every one once before any comes again."""
        wanted = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._order(i // num, num)[i % num]) for i in wanted]

    def _order(self, epoch: int, num: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(num)


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


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        best: The smallest validation loss so far, and the step it was seen at.
        seconds: Spent in steps.
        curve: One record per validation.
    """

    step: int = 0
    best: float = math.inf
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
        say: Told a line at each validation.
    """

    def __init__(
        self,
        objective: Objective,
        training: Training,
        out: Path,
        identity: dict[str, Any],
        say: Callable[[str], None],
    ):
        self.objective, self.training, self.out, self.say = objective, training, out, say
        self.identity = json.loads(json.dumps({**identity, "training": asdict(training)}))
        self.progress = Progress()
        self.parameters = [p for p in objective.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=training.learning_rate)

    def train(self) -> Progress:
        """Train to the end, from the last checkpoint where there is one; the best weights are in.

        Raises:
            AttribError: The folder holds another run, or the loss is not finite.
            KeyboardInterrupt: As it came, after a checkpoint.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        if not self.progress.curve:
            self._validate()
        with stop_between_steps() as asked_to_stop:
            while self.progress.step < self.training.steps:
                self._step()
                self._look()
                if asked_to_stop():
                    self._save_last()
                    raise KeyboardInterrupt
        self._save_last()
        self.objective.module.load_state_dict(load_file(self.out / BEST))
        return self.progress

    def _step(self) -> None:
        began, step, t = time.monotonic(), self.progress.step, self.training
        for group in self.optimizer.param_groups:
            group["lr"] = t.rate(step)
        self.optimizer.zero_grad()
        rng = np.random.default_rng([t.seed, 1, step])
        parts = self.objective.losses(t.items(step, self.objective.num_items), rng)
        loss = torch.stack(list(parts.values())).sum()
        if not loss.isfinite():
            self._refuse(step, parts)
        loss.backward()
        if t.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, t.clip)
        self.optimizer.step()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - began

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
        if numbers["loss"] < p.best:
            p.best, p.best_step = numbers["loss"], p.step
            save_tensors(self.out / BEST, self.objective.module.state_dict())
        shown = " ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        left = p.seconds / max(1, p.step) * (self.training.steps - p.step)
        self.say(f"step {p.step} of {self.training.steps}, {left:.0f} s left: {shown}")

    def _save_last(self) -> None:
        weights = {f"weights.{k}": v for k, v in self.objective.module.state_dict().items()}
        moments = {
            f"adam.{i}.{name}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        record = {"identity": self.identity, "progress": asdict(self.progress)}
        text = json.dumps(record, indent=1)
        # Weights and progress in one file: neither can be there without the other.
        save_tensors(self.out / LAST, weights | moments, {STATE: text})
        write_text(self.out / STATE, text)  # for readers

    def _resume(self) -> None:
        path = self.out / LAST
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()[STATE])
            if changed := _difference(record["identity"], self.identity):
                raise AttribError(
                    f"{self.out} holds another training: {changed}; choose another folder, or the "
                    "same settings to go on"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        module = self.objective.module
        module.load_state_dict({k: tensors[f"weights.{k}"] for k in module.state_dict()})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.progress = Progress(**record["progress"])


def _difference(old: dict[str, Any], new: dict[str, Any], path: str = "") -> str:
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and a != b:
            return _difference(a, b, f"{path}{key}.")
        if a != b:
            return f"{path}{key} was {a!r}, is {b!r} now"
    return ""
