"""Frozen prefix: inputs run once up to the first edited layer, so that training resumes there.

A step pads the stored states and calls the later layers as plain functions, with the adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from attrib.data.samples import EditRequest
from attrib.errors import SetupError
from attrib.forward import layer_call
from attrib.forward.hooks import first_tensor
from attrib.forward.layer_call import AXES, Call
from attrib.forward.replay import Captured, capture
from attrib.forward.up_to import states_up_to
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager
from attrib.progress import progress
from editors.adapters.edit_signal import EMBED
from editors.base import encode_requests

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
        final: The last layer's output at the labelled positions.
        layer_args: The distinct other arguments of the layer calls; none where nothing resumes.
        args_index: Index into `layer_args` for each layer.
        added: What is added to the stream before a layer (Qwen3-VL), by layer.
    """

    request: EditRequest
    hidden: dict[int, Float[Tensor, "pos d_model"]]
    spans: dict[str, Bool[Tensor, " pos"]]
    labels: Int[Tensor, " pos"]
    final: Float[Tensor, "asked d_model"]
    layer_args: tuple[Call, ...]
    args_index: tuple[int, ...]
    added: dict[int, Float[Tensor, "pos d_model"]]

    @property
    def num_bytes(self) -> int:
        """Bytes of the states, and of the layers' arguments."""
        held = pytree.tree_leaves((self.hidden, self.added, self.final, self.layer_args))
        return sum(t.nbytes for t in held if isinstance(t, Tensor))

    @property
    def last(self) -> int:
        """Position of the last prompt token."""
        return int(self.spans["last"].int().argmax())


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
    batch_size: int = 32,
    what: str | None = "inputs",
) -> list[PrefixStates]:
    """States at `layers` of inputs with targets, run once; `what` labels a progress bar, if given.

    Raises:
        SetupError: The model calls its layers with tensors that cannot be padded.
        RowError: An image cannot be used.
    """
    found: list[PrefixStates] = []
    starts = range(0, len(requests), batch_size)
    for start in starts if what is None else progress(starts, what):
        some = requests[start : start + batch_size]
        batch = encode_requests(vlm, some, padding_side="right")
        with capture(vlm) as captured:
            hidden = states_up_to(vlm, batch, range(vlm.num_layers))
        hidden[EMBED] = captured.embed
        found += _split(vlm, some, batch, captured, hidden, layers)
    return found


def collate(inputs: Sequence[PrefixStates], layer: int) -> PrefixBatch:
    """Pad and stack prefix states, to resume after `layer`."""
    first, lengths = inputs[0], [len(one.labels) for one in inputs]
    calls = [
        _stack_args([one.layer_args[i] for one in inputs], lengths, first.final.device)
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
) -> list[PrefixStates]:
    """Split a padded pass into its inputs; tensors are cloned, not views of the whole batch."""
    calls, args_index = _distinct_args(vlm, captured) if layers else ([], ())
    assert batch.labels is not None
    added = {i: after - before for i, (before, after) in captured.inputs.items() if i > 0 and calls}
    final, found = hidden[vlm.num_layers - 1], []
    for row, real in enumerate(batch.inputs["attention_mask"].bool()):
        num, labels = int(real.sum()), batch.labels[row]
        found.append(
            PrefixStates(
                requests[row],
                {layer: hidden[layer][row, :num].clone() for layer in layers},
                {name: batch.spans[name][row, :num].clone() for name in SPANS},
                labels[:num].clone(),
                final[row, (labels != IGNORE_INDEX).to(final.device)].clone(),
                tuple(_args_of_row(call, row, num, batch, hidden[EMBED]) for call in calls),
                args_index,
                {i: h[row, :num].clone() for i, h in added.items()},
            )
        )
    return found


def _distinct_args(vlm: VLM, captured: Captured) -> tuple[list[Call], tuple[int, ...]]:
    """Return the distinct arguments of a pass's layer calls, and each layer's index into them."""
    found: dict[tuple[int, ...], int] = {}
    calls, index = [], []
    for i in range(vlm.num_layers):
        call = captured.calls[i]
        if not layer_call.is_known(call):
            raise SetupError(
                f"{vlm.name}: layer {i} is called with tensors that cannot be padded "
                f"({', '.join(sorted(call[1]))}); adapters cannot be trained on it yet"
            )
        key = tuple(id(leaf) for leaf in pytree.tree_leaves(call[1]) if isinstance(leaf, Tensor))
        if key not in found:
            found[key] = len(calls)
            calls.append(call)
        index.append(found[key])
    return calls, tuple(index)


def _args_of_row(call: Call, row: int, num: int, batch: Batch, like: Tensor) -> Call:
    """Return one example's layer arguments, without its padding."""
    width = batch.inputs["attention_mask"].shape[1]
    one = layer_call.select_rows(call, torch.tensor([row]), batch.size)
    args, kwargs = layer_call.slice_positions(one, 0, num, width, like)
    if kwargs.get("attention_mask") is not None:
        seen = layer_call.visible_keys(one, width, like)[..., :num, :num]
        causal = torch.ones(num, num, dtype=torch.bool, device=like.device).tril()
        # Without a mask attention is causal, and has faster kernels.
        kwargs = {**kwargs, "attention_mask": None if bool((seen == causal).all()) else seen}
    known = {name: kwargs[name] for name in AXES.keys() & kwargs.keys()}
    return args, kwargs | pytree.tree_map_only(Tensor, torch.clone, known)


def _stack_args(calls: Sequence[Call], lengths: Sequence[int], device: torch.device) -> Call:
    """Stack the layer arguments of several examples, padded to the longest."""
    args, first = calls[0]
    kwargs = dict(first)
    for name in AXES.keys() & first.keys():
        values = [call[1][name] for call in calls]
        if name == "attention_mask":
            kwargs[name] = _stack_masks(values, lengths, device)
        else:
            kwargs[name] = pytree.tree_map(partial(_stack, *AXES[name], lengths), *values)
    return args, kwargs


def _stack(row: int, pos: int, lengths: Sequence[int], *parts: Any) -> Any:
    """Pad tensors along the axis `pos` and concatenate them along `row`."""
    if not isinstance(parts[0], Tensor):
        return parts[0]
    after, width = [0] * (-2 * pos - 1), max(lengths)
    pairs = zip(parts, lengths, strict=True)
    return torch.cat([nn.functional.pad(part, [*after, width - num]) for part, num in pairs], row)


def _stack_masks(
    masks: Sequence[Tensor | None], lengths: Sequence[int], device: torch.device
) -> Tensor | None:
    """Stack boolean masks; None where all are causal, since padding comes last."""
    if all(mask is None for mask in masks):
        return None
    width = max(lengths)
    seen = torch.ones(len(masks), 1, width, width, dtype=torch.bool, device=device).tril()
    for row, (mask, num) in enumerate(zip(masks, lengths, strict=True)):
        if mask is not None:
            seen[row, :, :num, :num] = mask[0]
            seen[row, :, num:, num:] = True  # padding sees itself: an empty row would be NaN
    return seen


def _pad(tensors: Sequence[Tensor], value: int = 0) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)
