"""How the layers were called for one example, and for several of them side by side.

The arguments of decoder layers besides hidden states are masks, positions and rotary tables
(`attrib.forward.layer_call`). Here those of a padded batch are parted, and put together anew for
other batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attrib.errors import SetupError
from attrib.forward.layer_call import (
    AXES,
    Call,
    is_known,
    select_rows,
    slice_positions,
    visible_keys,
)
from attrib.forward.replay import Captured
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


def variants(vlm: VLM, captured: Captured) -> tuple[list[Call], tuple[int, ...]]:
    """The different calls of a pass, and which one each layer got."""
    found: dict[tuple[int, ...], int] = {}
    calls, call_of = [], []
    for i in range(vlm.num_layers):
        call = captured.calls[i]
        if not is_known(call):
            raise SetupError(
                f"{vlm.name}: layer {i} is called with tensors that cannot be padded "
                f"({', '.join(sorted(call[1]))}); adapters cannot be trained on it yet"
            )
        key = tuple(id(value) for value in _leaves(call[1]))
        if key not in found:
            found[key] = len(calls)
            calls.append(call)
        call_of.append(found[key])
    return calls, tuple(call_of)


def one_example(call: Call, row: int, num: int, batch: Batch, like: Tensor) -> Call:
    """The call for one example alone, without its padding."""
    width = batch.inputs["attention_mask"].shape[1]
    one = select_rows(call, torch.tensor([row]), batch.size)
    args, kwargs = slice_positions(one, 0, num, width, like)
    if kwargs.get("attention_mask") is not None:
        seen = visible_keys(one, width, like)[..., :num, :num]
        causal = torch.ones(num, num, dtype=torch.bool, device=like.device).tril()
        # Causal attention goes without saying, and has faster kernels.
        kwargs = {**kwargs, "attention_mask": None if bool((seen == causal).all()) else seen}
    return args, {
        name: _map(value, torch.clone) if name in AXES else value for name, value in kwargs.items()
    }


def stacked(calls: Sequence[Call], lengths: Sequence[int], width: int, like: Tensor) -> Call:
    """The calls of several examples as one, for examples padded to `width`."""
    args, first = calls[0]
    kwargs = dict(first)
    for name in AXES.keys() & first.keys():
        values = [call[1][name] for call in calls]
        if name == "attention_mask":
            kwargs[name] = _masks(values, lengths, width, like)
        else:
            kwargs[name] = _join(values, AXES[name], lengths, width)
    return args, kwargs


def _masks(
    masks: Sequence[Tensor | None], lengths: Sequence[int], width: int, like: Tensor
) -> Tensor | None:
    """Which keys are seen; nothing to say where all are causal: padding lies behind."""
    if all(mask is None for mask in masks):
        return None
    seen = torch.ones(len(masks), 1, width, width, dtype=torch.bool, device=like.device).tril()
    for row, (mask, num) in enumerate(zip(masks, lengths, strict=True)):
        if mask is not None:
            seen[row, :, :num, :num] = mask[0]
            seen[row, :, num:, num:] = True  # padding sees itself: a row of nothing would be NaN
    return seen


def _join(values: Sequence[Any], axes: tuple[int, int], lengths: Sequence[int], width: int) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_join(part, axes, lengths, width) for part in zip(*values, strict=True))
    if not isinstance(values[0], Tensor):
        return values[0]
    row, pos = axes
    padded = []
    for value, num in zip(values, lengths, strict=True):
        after = [0] * (2 * -pos)
        after[-1] = width - num
        padded.append(nn.functional.pad(value, after))
    return torch.cat(padded, row)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value] if isinstance(value, Tensor) else []


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_map(part, fn) for part in value)
    return fn(value) if isinstance(value, Tensor) else value
