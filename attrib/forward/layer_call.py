"""How a forward pass called a decoder layer, cut down to some positions, rows or one query.

transformers hands a layer the hidden states and, as keywords, the mask, positions and rotary
tables: tensors whose axes for examples and positions are known. A call with other tensors is not
cut (`is_known`); its rows can still be picked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]
# Axes of the example and of the position, from the end: rotary tables may have one more in front.
AXES = {"attention_mask": (-4, -2), "position_ids": (-2, -1), "position_embeddings": (-3, -2)}


def is_known(call: Call) -> bool:
    """Whether all tensors of a call are of the signature whose axes are known."""
    args, kwargs = call
    mask = kwargs.get("attention_mask")
    plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    others = [value for name, value in kwargs.items() if name not in AXES]
    return plain and not any(map(_holds_tensor, (*args, *others)))


def signature(call: Call) -> tuple[Any, ...]:
    """What a call is made of, whatever the sizes: the same for batches that are run alike."""
    args, kwargs = call
    return tuple((name, _kind(value)) for name, value in [*enumerate(args), *kwargs.items()])


def visible_keys(call: Call, num_pos: int, like: Tensor) -> Bool[Tensor, "rows heads pos pos"]:
    """Which query sees which key; causal where the call has no mask. `rows` may be 1."""
    mask = call[1].get("attention_mask")
    if mask is None:
        index = torch.arange(num_pos, device=like.device)
        return (index <= index[:, None])[None, None]
    # Masks to be added are zero where a key is seen, and very negative elsewhere.
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def slice_positions(call: Call, start: int, stop: int, num_pos: int, like: Tensor) -> Call:
    """The call for the positions from `start` to `stop`; keys stay those of all positions."""
    if (start, stop) == (0, num_pos):
        return call
    args, kwargs = call
    if kwargs.get("attention_mask") is None:  # a causal one goes without saying only if square
        kwargs = {**kwargs, "attention_mask": visible_keys(call, num_pos, like)}

    def shorten(name: str, value: Tensor) -> Tensor:
        return value.narrow(AXES[name][1], start, stop - start)

    return args, _map_known(kwargs, shorten)


def one_query(call: Call, at: Sequence[int], num_pos: int, like: Tensor) -> Call:
    """The call for one position per example; keys stay those of all positions."""
    args, kwargs = call
    if kwargs.get("attention_mask") is None:
        kwargs = {**kwargs, "attention_mask": visible_keys(call, num_pos, like)}

    def one(name: str, value: Tensor) -> Tensor:
        row, pos = AXES[name]
        each = [
            value.narrow(row, i if value.shape[row] > 1 else 0, 1).narrow(pos, p, 1)
            for i, p in enumerate(at)
        ]
        return torch.cat(each, row)

    return args, _map_known(kwargs, one)


def select_rows(call: Call, rows: Int[Tensor, " version"], batch: int) -> Call:
    """The call for versions of the examples `rows` of a batch."""
    args, kwargs = call
    picked = {name: _picked(name, value, rows, batch) for name, value in kwargs.items()}
    return tuple(_picked("", value, rows, batch) for value in args), picked


def _picked(name: str, value: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_picked(name, part, rows, batch) for part in value)
    if isinstance(value, dict):
        return {key: _picked(name, part, rows, batch) for key, part in value.items()}
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    axis = AXES[name][0] if name in AXES else 0
    # One row for all examples is broadcast by the layers themselves.
    if value.shape[axis] != batch or (batch == 1 and name in AXES):
        return value
    return value.index_select(axis, rows.to(value.device))


def _map_known(kwargs: dict[str, Any], fn: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    def apply(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(apply(name, part) for part in value)
        return fn(name, value) if isinstance(value, Tensor) else value

    return {name: apply(name, value) if name in AXES else value for name, value in kwargs.items()}


def _holds_tensor(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, dict | tuple | list)
    return isinstance(value, Tensor) or (nested and any(map(_holds_tensor, parts)))


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.ndim, str(value.dtype)
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    return type(value).__name__
