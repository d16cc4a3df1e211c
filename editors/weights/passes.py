"""Passes from a layer on, with other weights or with low-rank updates made of gradients.

The gradient of a linear layer's weight is a sum over tokens of outer products of the gradient at
its output and its input. Updates made of gradients keep this form: a sum of outer products, which
can be added to the layer's output, a different one for each row of a batch, without the matrix.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from attrib.forward.hooks import on_input, on_output, read
from attrib.forward.replay import capture, forward_from
from attrib.metrics import log_probabilities
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.devices import execution_device, loaded_weights
from attrib.model.vlm import VLM
from editors.base import Edit, WeightEdit
from editors.weights.components import Matrix

Result = TypeVar("Result")
PartialForward = Callable[[], Float[Tensor, "token d_model"]]


def labels_of(batch: Batch) -> Int[Tensor, " token"]:
    """The answer tokens of a batch, row by row."""
    assert batch.labels is not None
    return batch.labels[batch.labels != IGNORE_INDEX]


@torch.no_grad()
def partial_forward(vlm: VLM, batch: Batch, first: int) -> PartialForward:
    """A function that runs the layers from `first` on: the last output at the labelled positions.

    The layers before `first` run once, now. Each call uses the hooks and parameters of its time,
    and gradients flow through them.
    """
    with read(vlm, [] if first == 0 else [first - 1]) as hidden, capture(vlm) as captured:
        vlm.logits(batch)
    start = captured.embed if first == 0 else hidden[first - 1]
    assert batch.labels is not None
    has_label = batch.labels != IGNORE_INDEX

    def run() -> Float[Tensor, "token d_model"]:
        last = forward_from(vlm, captured, first - 1, start)
        return last[has_label.to(last.device)].to(has_label.device)

    return run


class WeightCaller(nn.Module):
    """Calls functions while parameters of a model have other values; gradients reach these.

    Args:
        model: The model.
        names: The parameters; where modules share one, it changes in all of them.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        super().__init__()
        # Only the modules around them are looked through at each call, not the whole model.
        self.holders, self.places = nn.ModuleList(), dict[str, str]()
        wanted = {id(model.get_parameter(name)): name for name in names}
        for module in model.modules():
            own = {key: wanted.get(id(value)) for key, value in module.named_parameters("", False)}
            if found := {key: name for key, name in own.items() if name}:
                place = f"holders.{len(self.holders)}"
                self.places |= {f"{place}.{key}": name for key, name in found.items()}
                self.holders.append(module)

    def call(self, weights: Mapping[str, Tensor], fn: Callable[[], Result]) -> Result:
        """Call `fn` while the parameters have these values, by name."""
        values = {place: weights[name] for place, name in self.places.items()}
        return functional_call(self, values, (fn,), tie_weights=False)

    def forward(self, fn: Callable[[], Result]) -> Result:
        """Call a function."""
        return fn()


def target_loss(
    logits: Float[Tensor, "token d_vocab"], labels: Int[Tensor, " token"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer tokens, in nats."""
    return -log_probabilities(logits).gather(1, labels[:, None]).mean()


@dataclass(frozen=True, eq=False)
class TokenGradients:
    """Inputs and output gradients of one matrix, for some requests.

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
    """Updates of one matrix, one per edit: the sum over terms of `left` times `right`."""

    left: Float[Tensor, "edit term d_out"]
    right: Float[Tensor, "edit term d_in"]

    def rows(self, edit_of: Int[Tensor, " batch"]) -> "LowRankUpdate":
        """The updates for inputs of the edits `edit_of`."""
        at = edit_of.to(self.left.device)
        return LowRankUpdate(self.left[at], self.right[at])

    @property
    def dense(self) -> Float[Tensor, "edit d_out d_in"]:
        """The updates as matrices."""
        return self.left.mT @ self.right

    @property
    def mean_square(self) -> Float[Tensor, " edit"]:
        """Mean square of each update's elements."""
        # The squared norm of a sum of outer products is a sum over pairs of terms.
        pairs = (self.left @ self.left.mT) * (self.right @ self.right.mT)
        return pairs.sum((1, 2)) / (self.left.shape[-1] * self.right.shape[-1])


@torch.enable_grad()
def token_gradients(
    vlm: VLM, matrices: Sequence[Matrix], run: PartialForward, labels: Int[Tensor, "edit pos"]
) -> dict[str, TokenGradients]:
    """Gradients of each request's own loss by matrix, in float32.

    Args:
        vlm: The model; its parameters need no gradient and get none.
        matrices: The matrices.
        run: Runs the requests: the last layer's output at the labelled positions, row by row.
        labels: The answers, -100 elsewhere.
    """
    inputs: dict[str, Tensor] = {}
    probes: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for matrix in matrices:
            stack.enter_context(_captured(matrix, inputs))
            stack.enter_context(on_output(matrix.module, _probe(probes, matrix.name)))
        logits = vlm.unembed(run())
    labels = labels.to(logits.device)
    has_label = labels != IGNORE_INDEX
    share = (has_label / has_label.sum(1, keepdim=True))[has_label]
    target = log_probabilities(logits).gather(1, labels[has_label][:, None])[:, 0]
    deltas = torch.autograd.grad(-(share * target).sum(), list(probes.values()))

    device = execution_device(matrices[0].module)  # one for all: the updates are made together

    def by_row(value: Tensor) -> Tensor:  # some models flatten the batch in front of these layers
        return value.detach().float().to(device).reshape(len(labels), -1, value.shape[-1])

    return {
        name: TokenGradients(by_row(inputs[name]), by_row(delta))
        for name, delta in zip(probes, deltas, strict=True)
    }


@contextmanager
def apply_updates(
    matrices: Sequence[Matrix], updates: Mapping[str, LowRankUpdate]
) -> Iterator[None]:
    """Apply each row's own update of the matrices to passes inside; gradients reach the updates."""
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for matrix in matrices:
            stack.enter_context(_captured(matrix, inputs))
            add = _add_update(inputs, matrix.name, updates[matrix.name])
            stack.enter_context(on_output(matrix.module, add))
        yield


@torch.no_grad()
def sum_of_edits(vlm: VLM, edits: Sequence[Edit]) -> WeightEdit:
    """One edit with the summed updates of all edits, each made of the unedited model."""
    changed = [getattr(edit, "weights", {}) for edit in edits]
    total: dict[str, Tensor] = {}
    with loaded_weights(vlm.model, {name for one in changed for name in one}) as weights:
        for name, value in (pair for one in changed for pair in one.items()):
            exact = weights[name].detach().to(torch.promote_types(value.dtype, torch.float32))
            total[name] = total.get(name, exact) + (value.to(exact.device) - exact)
        return WeightEdit({name: value.to(weights[name].dtype) for name, value in total.items()})


def _captured(matrix: Matrix, into: dict[str, Tensor]) -> AbstractContextManager[Any]:
    return on_input(matrix.module, lambda x, _args, _kwargs: into.update({matrix.name: x}))


def _probe(into: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def add_zeros(h: Tensor) -> Tensor:
        into[name] = torch.zeros_like(h, requires_grad=True)
        return h + into[name]

    return add_zeros


def _add_update(
    inputs: dict[str, Tensor], name: str, update: LowRankUpdate
) -> Callable[[Tensor], Tensor]:
    def add(h: Tensor) -> Tensor:
        x = inputs[name].to(update.right)
        x = x.reshape(len(update.right), -1, x.shape[-1])
        more = (x @ update.right.mT) @ update.left
        return h + more.reshape(h.shape).to(h)

    return add
