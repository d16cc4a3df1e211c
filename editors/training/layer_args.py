"""Arguments of layer calls: those of one input, without padding, and of several, padded again."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from attrib.errors import SetupError
from attrib.forward import layer_call
from attrib.forward.layer_call import AXES, Call
from attrib.forward.replay import Captured
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

KEPT = 8  # tensors of a kind that a new one is compared with


def distinct_args(vlm: VLM, captured: Captured) -> tuple[list[Call], tuple[int, ...]]:
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


@dataclass(eq=False)
class SharedTensors:
    """Copies of tensors, one for all that are equal or that are the beginning of it.

    In most models rotary tables depend on the length alone, in some on the sizes of images too.
    """

    _held: dict[Any, deque[Tensor]] = field(
        default_factory=lambda: defaultdict(partial(deque, maxlen=KEPT)), repr=False
    )

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy, or a view of an earlier one: its beginning along the last two axes."""
        rows, columns = tensor.shape[-2:]
        held = self._held[tensor.shape[:-2], tensor.dtype, tensor.device]
        for one in held:
            view = one[..., :rows, :columns]
            if view.shape == tensor.shape and torch.equal(view, tensor):
                return view
        held.appendleft(tensor.clone())
        return held[0]


def args_of_rows(
    calls: Sequence[Call], batch: Batch, like: Tensor, shared: SharedTensors
) -> list[tuple[Call, ...]]:
    """Return the arguments of some layer calls for each example, without its padding."""
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    # The longest first: most others are the beginning of its.
    order = sorted(range(batch.size), key=lambda row: -lengths[row])
    found = {
        row: tuple(_args_of_row(call, row, lengths[row], batch, like, shared) for call in calls)
        for row in order
    }
    return [found[row] for row in range(batch.size)]


def _args_of_row(
    call: Call, row: int, num: int, batch: Batch, like: Tensor, shared: SharedTensors
) -> Call:
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
    return args, kwargs | pytree.tree_map_only(Tensor, shared.copy, known)


def stack_args(calls: Sequence[Call], lengths: Sequence[int], device: torch.device) -> Call:
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
