"""Frozen prefix: inputs run once up to the first edited layer, so that training resumes there.

A step pads the stored states and calls the later layers as plain functions, with the adapters.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from attrib.data.samples import EditRequest
from attrib.forward.hooks import first_tensor
from attrib.forward.layer_call import Call
from attrib.forward.replay import Captured
from attrib.forward.up_to import states_and_calls
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager
from attrib.progress import progress
from editors.adapters.edit_signal import EMBED
from editors.base import encode_requests
from editors.training.layer_args import SharedTensors, args_of_rows, distinct_args, stack_args

SPANS = ("visual", "text", "last")
Intervention = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]
Interventions = Mapping[int, Sequence[Intervention]]  # on each layer's output, in order


@dataclass(frozen=True, eq=False)
class PrefixStates:
    """States of one teacher-forced input in the unedited model, without padding.

    Attributes:
        request: The input.
        hidden: Output by layer, `EMBED` for the stream entering layer 0: "pos d_model".
        spans: Positions by span.
        labels: The next token's id where it belongs to the target, `IGNORE_INDEX` elsewhere.
        final: The last layer's output at the labelled positions; None where nothing needs it.
        layer_args: The distinct other arguments of the layer calls; none where nothing resumes.
        args_index: Index into `layer_args` for each layer.
        added: What is added to the stream before a layer (Qwen3-VL), by layer.
    """

    request: EditRequest
    hidden: dict[int, Float[Tensor, "pos d_model"]]
    spans: dict[str, Bool[Tensor, " pos"]]
    labels: Int[Tensor, " pos"]
    final: Float[Tensor, "asked d_model"] | None
    layer_args: tuple[Call, ...]
    args_index: tuple[int, ...]
    added: dict[int, Float[Tensor, "pos d_model"]]

    @property
    def num_bytes(self) -> int:
        """Bytes of the states, and of the layers' arguments."""
        return num_bytes([self])

    @property
    def num_asked(self) -> int:
        """Number of labelled positions."""
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def last(self) -> int:
        """Position of the last prompt token."""
        return int(self.spans["last"].int().argmax())


def num_bytes(inputs: Iterable[PrefixStates]) -> int:
    """Bytes of states and of the layers' arguments; what inputs share counts once."""
    parts = [(one.hidden, one.added, one.final, one.layer_args) for one in inputs]
    held = [
        leaf.untyped_storage() for leaf in pytree.tree_leaves(parts) if isinstance(leaf, Tensor)
    ]
    return sum({(part.device, part.data_ptr()): part.nbytes() for part in held}.values())


@dataclass(frozen=True, eq=False)
class PrefixRows:
    """Inputs, with the index of the edit that each belongs to and of its role in `ROLES`."""

    inputs: list[PrefixStates]
    edit_of: Int[Tensor, " batch"]
    role_of: Int[Tensor, " batch"]

    def where(self, has_image: bool) -> "PrefixRows":
        """Return the inputs with, or those without an image."""
        some = [bool(one.spans["visual"].any()) == has_image for one in self.inputs]
        at = torch.tensor(some, dtype=torch.bool)
        kept = [one for one, keep in zip(self.inputs, some, strict=True) if keep]
        return PrefixRows(kept, self.edit_of[at], self.role_of[at])


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """Prefix states padded on the right, to resume after a layer.

    Attributes:
        layer: The layer whose output `hidden` is.
        hidden: The inputs' states there.
        spans: Positions by span.
        labels: As in `PrefixStates`; `IGNORE_INDEX` on padding.
        layer_args: Arguments of each later layer's call.
        added: What is added to the stream before a layer, by layer.
    """

    layer: int
    hidden: Float[Tensor, "batch pos d_model"]
    spans: dict[str, Bool[Tensor, "batch pos"]]
    labels: Int[Tensor, "batch pos"]
    layer_args: dict[int, Call]
    added: dict[int, Float[Tensor, "batch pos d_model"]]

    @eager()
    def run(self, vlm: VLM, interventions: Interventions) -> Float[Tensor, "asked d_model"]:
        """Run the later layers, with interventions; return the output at labelled positions."""
        h = self.hidden
        for i in range(self.layer, vlm.num_layers):
            if i > self.layer:
                args, kwargs = self.layer_args[i]
                h = h + self.added[i].to(h.device) if i in self.added else h
                h = first_tensor(vlm.layers[i](h, *args, **kwargs))
            for intervene in interventions.get(i, ()):
                h = intervene(h)
        return h[(self.labels != IGNORE_INDEX).to(h.device)]


@torch.no_grad()
def prefix_states(
    vlm: VLM,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    final: bool = True,
    shared: SharedTensors | None = None,
    batch_size: int = 32,
    what: str | None = "inputs",
) -> list[PrefixStates]:
    """States at `layers` of inputs with targets, run once.

    Args:
        vlm: The model.
        requests: The inputs.
        layers: Layers whose output is kept; none to resume nowhere.
        final: Whether the last layer's output is needed; if not, no layer after `layers` runs.
        shared: Holds arguments of layers that inputs of several calls have in common.
        batch_size: Inputs per pass.
        what: Label of a progress bar; None for none.

    Raises:
        SetupError: The model calls its layers with tensors that cannot be padded.
        RowError: An image cannot be used.
    """
    found: list[PrefixStates] = []
    shared = SharedTensors() if shared is None else shared
    starts = range(0, len(requests), batch_size)
    for start in starts if what is None else progress(starts, what):
        some = requests[start : start + batch_size]
        batch = encode_requests(vlm, some, padding_side="right")
        needed = {*layers, *([vlm.num_layers - 1] if final else [])}
        hidden, captured = {}, Captured({}, {})
        if needed:
            hidden, captured = states_and_calls(vlm, batch, sorted(needed - {EMBED}))
            hidden[EMBED] = captured.embed
        found += _split(vlm, some, batch, captured, hidden, layers, final, shared)
    return found


def collate(inputs: Sequence[PrefixStates], layer: int) -> PrefixBatch:
    """Pad and stack prefix states, to resume after `layer`."""
    first, lengths = inputs[0], [len(one.labels) for one in inputs]
    calls = [
        stack_args([one.layer_args[i] for one in inputs], lengths, first.hidden[layer].device)
        for i in range(len(first.layer_args))
    ]
    return PrefixBatch(
        layer,
        _pad([one.hidden[layer] for one in inputs]),
        {name: _pad([one.spans[name] for one in inputs]) for name in SPANS},
        _pad([one.labels for one in inputs], IGNORE_INDEX),
        {i: calls[k] for i, k in enumerate(first.args_index) if i > layer},
        {i: _pad([one.added[i] for one in inputs]) for i in first.added if i > layer},
    )


def _split(
    vlm: VLM,
    requests: Sequence[EditRequest],
    batch: Batch,
    captured: Captured,
    hidden: dict[int, Tensor],
    layers: Sequence[int],
    final: bool,
    shared: SharedTensors,
) -> list[PrefixStates]:
    """Split a padded pass into its inputs; tensors are copies, not views of the whole batch."""
    calls, args_index = distinct_args(vlm, captured) if layers else ([], ())
    assert batch.labels is not None
    added = {i: after - before for i, (before, after) in captured.inputs.items() if i > 0 and calls}
    args = args_of_rows(calls, batch, hidden[EMBED], shared) if calls else [()] * batch.size
    last, found = hidden[vlm.num_layers - 1] if final else None, []
    for row, real in enumerate(batch.inputs["attention_mask"].bool()):
        num, labels = int(real.sum()), batch.labels[row]
        found.append(
            PrefixStates(
                requests[row],
                {layer: hidden[layer][row, :num].clone() for layer in layers},
                {name: batch.spans[name][row, :num].clone() for name in SPANS},
                labels[:num].clone(),
                None if last is None else last[row, (labels != IGNORE_INDEX).to(last.device)],
                args[row],
                args_index,
                {i: h[row, :num].clone() for i, h in added.items()},
            )
        )
    return found


def _pad(tensors: Sequence[Tensor], value: int = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)
