"""What a request's gradient says of a matrix, token by token, and changes made of it.

The gradient of a linear map's weight is a sum over tokens of outer products, of the gradient at the
map's output and of its input. Editors that make changes out of gradients keep this form: a change
is a sum of outer products, which can be added to the map's output, for every row of a batch another
one, without a matrix being written down.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.forward.hooks import on_input, on_output
from attrib.metrics import log_probabilities
from attrib.model.batch import IGNORE_INDEX
from attrib.model.vlm import VLM
from editors.base import Edit, WeightEdit
from editors.weights.mlp import Matrix
from editors.weights.partial_forward import PartialForward


@dataclass(frozen=True, eq=False)
class TokenGradients:
    """Of one matrix: what it saw of some requests, and how their losses change with its output.

    Attributes:
        x: Its input at every position.
        delta: Gradient of the request's loss (mean over answer tokens) at its output.
    """

    x: Float[Tensor, "edit pos d_in"]
    delta: Float[Tensor, "edit pos d_out"]

    @property
    def real(self) -> Bool[Tensor, "edit pos"]:
        """Positions that the gradient of the weight depends on."""
        return self.x.any(-1) & self.delta.any(-1)


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """Of one matrix a change for each of some edits: the sum over terms of `left` times `right`."""

    left: Float[Tensor, "edit term d_out"]
    right: Float[Tensor, "edit term d_in"]

    def rows(self, edit_of: Int[Tensor, " batch"]) -> "LowRankUpdate":
        """The changes for inputs that belong to the edits `edit_of`."""
        at = edit_of.to(self.left.device)
        return LowRankUpdate(self.left[at], self.right[at])

    @property
    def dense(self) -> Float[Tensor, "edit d_out d_in"]:
        """The changes as matrices."""
        return self.left.mT @ self.right

    @property
    def mean_square(self) -> Float[Tensor, " edit"]:
        """The mean square of each change's elements."""
        # The squared norm of a sum of outer products is a sum over pairs of terms.
        pairs = (self.left @ self.left.mT) * (self.right @ self.right.mT)
        return pairs.sum((1, 2)) / (self.left.shape[-1] * self.right.shape[-1])


@torch.enable_grad()
def token_gradients(
    vlm: VLM, matrices: Sequence[Matrix], run: PartialForward, labels: Int[Tensor, "edit pos"]
) -> dict[str, TokenGradients]:
    """By matrix the gradients of each request's own loss, in float32.

    Args:
        vlm: The model; its parameters need no gradient and get none.
        matrices: Which.
        run: Runs the requests: the last layer's output where there is a label, row by row.
        labels: The answers, -100 elsewhere.
    """
    seen: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for matrix in matrices:
            stack.enter_context(on_input(matrix.module, _keeper(seen, matrix.name)))
            stack.enter_context(on_output(matrix.module, _prober(probes, matrix.name)))
        logits = vlm.unembed(run())
    asked = labels != IGNORE_INDEX
    share = (asked / asked.sum(1, keepdim=True))[asked]
    right = log_probabilities(logits).gather(1, labels[asked][:, None])[:, 0]
    deltas = torch.autograd.grad(-(share * right).sum(), list(probes.values()))

    def by_row(value: Tensor) -> Tensor:  # some models run all rows as one through these maps
        return value.detach().float().reshape(len(labels), -1, value.shape[-1])

    return {
        name: TokenGradients(by_row(seen[name]), by_row(delta))
        for name, delta in zip(probes, deltas, strict=True)
    }


@contextmanager
def apply_updates(
    matrices: Sequence[Matrix], changes: Mapping[str, LowRankUpdate]
) -> Iterator[None]:
    """Passes inside see each row's own change of the matrices; gradients reach the changes."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for matrix in matrices:
            stack.enter_context(on_input(matrix.module, _keeper(seen, matrix.name)))
            add = _adder(seen, matrix.name, changes[matrix.name])
            stack.enter_context(on_output(matrix.module, add))
        yield


@torch.no_grad()
def weight_edit(matrices: Sequence[Matrix], changes: Mapping[str, LowRankUpdate]) -> WeightEdit:
    """The first of the edits that the changes are for."""
    return WeightEdit(
        {
            m.name: (m.module.weight + changes[m.name].dense[0]).to(m.module.weight.dtype)
            for m in matrices
        }
    )


@torch.no_grad()
def sum_of_edits(vlm: VLM, edits: Sequence[Edit]) -> WeightEdit:
    """One edit that has the changes of all, each made of the model as it is now."""
    weights = dict(vlm.model.named_parameters())
    total: dict[str, Tensor] = {}
    for edit in edits:
        for name, value in getattr(edit, "weights", {}).items():
            exact = weights[name].detach().to(torch.promote_types(value.dtype, torch.float32))
            total[name] = total.get(name, exact) + (value - exact)
    return WeightEdit({name: value.to(weights[name].dtype) for name, value in total.items()})


def _keeper(
    into: dict[str, Tensor], name: str
) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
    def keep(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args, kwargs
        into[name] = x

    return keep


def _prober(into: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def probe(h: Tensor) -> Tensor:
        into[name] = torch.zeros_like(h, requires_grad=True)
        return h + into[name]

    return probe


def _adder(seen: dict[str, Tensor], name: str, change: LowRankUpdate) -> Callable[[Tensor], Tensor]:
    def add(h: Tensor) -> Tensor:
        x = seen[name].to(change.right.dtype).reshape(len(change.right), -1, seen[name].shape[-1])
        more = (x @ change.right.mT) @ change.left
        return h + more.reshape(h.shape).to(h.dtype)

    return add
