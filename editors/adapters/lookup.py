"""Look-up: which of the held edits, if any, applies to an input.

A gate may index edits once (`index`), so that an input costs little however many there are. The
decision is that of `nearest`, which scores every edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editors.adapters.sites import Gate

ROUNDING = 1e-5  # of a score
NO_EDIT = -1
Features = Sequence[Mapping[str, Tensor]]


@runtime_checkable
class EditIndex(Protocol):
    """Finds the edit that applies to an input."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds besides the edits' own features."""
        ...

    def nearest(self, queries: Features) -> Int[Tensor, " query"]:
        """What the function `nearest` returns for these inputs."""
        ...


@runtime_checkable
class KeyedGate(Gate, Protocol):
    """A gate whose scores are a matrix product of one key per input and edit."""

    def keys(self, states: Features) -> Float[Tensor, "input width"]:
        """The key of each input or edit."""
        ...

    def compare_keys(
        self, one: Float[Tensor, "query width"], other: Float[Tensor, "edit width"]
    ) -> Float[Tensor, "query edit"]:
        """The scores of keys."""
        ...


@dataclass(frozen=True, eq=False)
class ScoreIndex:
    """Scores every edit for every input; for gates that have no index of their own.

    Attributes:
        gate: The gate.
        edits: The features of the edits, oldest first.
    """

    gate: Gate
    edits: Features
    num_bytes: int = 0

    def nearest(self, queries: Features) -> Int[Tensor, " query"]:
        """See `EditIndex`."""
        return nearest(self.gate, queries, self.edits)


@dataclass(frozen=True, eq=False)
class KeyIndex:
    """The keys of all edits as one matrix: an input costs one matrix product, which is exact.

    Attributes:
        gate: The gate.
        matrix: The keys of the edits, oldest first.
    """

    gate: KeyedGate
    matrix: Float[Tensor, "edit width"]

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix."""
        return self.matrix.nbytes

    def nearest(self, queries: Features) -> Int[Tensor, " query"]:
        """See `EditIndex`."""
        keys = self.gate.keys(queries)
        return newest_of_best(self.gate.compare_keys(keys, self.matrix.to(keys)), self.gate)


def index_of(gate: Gate, edits: Features) -> EditIndex:
    """The index of some edits: the gate's own, or one that scores every edit."""
    make: Any = getattr(gate, "index", None)
    if make is None or not len(edits):
        return ScoreIndex(gate, edits)
    return cast("EditIndex", make(edits))


def nearest(gate: Gate, queries: Features, edits: Features) -> Int[Tensor, " query"]:
    """Index of the most similar edit above the threshold, -1 for none; of equals the newest.

    Two edits of one picture and question have the same features, and scores that are equal up to
    rounding: the newer one replaces the older.
    """
    if not len(edits):
        return torch.full((len(queries),), NO_EDIT, dtype=torch.long)
    scores = gate.scores([dict(one) for one in queries], [dict(one) for one in edits])
    return newest_of_best(scores, gate)


def newest_of_best(scores: Float[Tensor, "query edit"], gate: Gate) -> Int[Tensor, " query"]:
    """The last of the edits with the highest score, -1 where no score reaches the threshold."""
    best = scores.max(1, keepdim=True).values
    newest = torch.where(
        scores >= tied_from(best), torch.arange(scores.shape[1], device=scores.device), NO_EDIT
    ).max(1)
    return torch.where(best[:, 0] >= gate.threshold, newest.values, NO_EDIT)


def tied_from(best: Float[Tensor, "query 1"]) -> Float[Tensor, "query 1"]:
    """The lowest score that equals the best one up to rounding."""
    return best - ROUNDING * best.abs().clamp(min=1.0)
