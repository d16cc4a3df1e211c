"""How long, how fast and in which order an editor is trained."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Training:
    """How an editor is trained; the defaults are the papers' (reference: VisEdit App. B.4).

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Edits in a step.
        optimizer: "adam", or "muon": Muon for matrices, and Adam for the rest.
        learning_rate: At its highest.
        warmup: Steps over which it rises.
        decay: "constant", or "cosine" to zero at the last step.
        clip: Largest norm of the gradient; None for any.
        seed: Of the order of edits and everything else that is random.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints to resume from.
        best_by: What the weights are kept by: the smallest "loss" on held-out edits, or the largest
            share of answer tokens that are "right" there (mean over the kinds of input).
    """

    steps: int = 50_000
    batch_size: int = 4
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip: float | None = None
    seed: int = 0
    validate_every: int = 500
    save_every: int = 500
    best_by: Literal["loss", "right"] = "loss"

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
