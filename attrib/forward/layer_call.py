"""Call one decoder layer on part of a pass: some positions, some rows, with cached keys and values.

transformers passes a layer its hidden states and, as keywords, the mask, positions and rotary
tables: tensors whose example and position axes are known. A call with other tensors cannot be
sliced (`is_known`); its rows can still be selected. Attention layers pass their new keys and values
to `past_key_values.update` and attend to its result, so any object with this method can serve as
the cache.
"""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from attrib.forward.hooks import StopForward, first_tensor
from attrib.forward.replay import Call, map_tensors
from attrib.model.wrapped import eager

# Axes of the example and of the position, from the end: rotary tables may have one more in front.
AXES = {"attention_mask": (-4, -2), "position_ids": (-2, -1), "position_embeddings": (-3, -2)}
# Masks of padding, which linear attention and state-space layers get, have the example first.
PADDING_MASK = (-2, -1)


def axes(name: str, value: Tensor) -> tuple[int, int]:
    """Axes of the example and of the position in an argument of a layer, from the end."""
    if name == "attention_mask" and value.ndim == 2:
        return PADDING_MASK
    return AXES.get(name, (-value.ndim, -value.ndim + 1))


def is_known(call: Call) -> bool:
    """Whether the axes of all tensors in a call are known."""
    args, kwargs = call
    mask = kwargs.get("attention_mask")
    plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    others = [value for name, value in kwargs.items() if name not in AXES]
    leaves = tree_leaves((args, others))
    return plain and not any(isinstance(leaf, Tensor | MutableMapping) for leaf in leaves)


def signature(call: Call) -> tuple[Any, ...]:
    """Structure, dtypes and numbers of axes of a call, whatever its sizes."""
    leaves, structure = tree_flatten(call)
    return str(structure), tuple(
        (leaf.ndim, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves
    )


def visible_keys(call: Call, num_pos: int, like: Tensor) -> Bool[Tensor, "rows heads pos pos"]:
    """Which query sees which key; causal if the call has no mask. `rows` may be 1."""
    mask = call[1].get("attention_mask")
    if mask is None:
        index = torch.arange(num_pos, device=like.device)
        return (index <= index[:, None])[None, None]
    # Additive masks are 0 where a key is seen and very negative elsewhere.
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def slice_positions(call: Call, start: int, stop: int, num_pos: int, like: Tensor) -> Call:
    """The call for the positions `start` to `stop`; keys stay those of all positions."""
    if (start, stop) == (0, num_pos):
        return call

    def narrow(name: str, value: Tensor) -> Tensor:
        return value.narrow(AXES[name][1], start, stop - start)

    return _map_known(_with_mask(call, num_pos, like), narrow)


def one_query(call: Call, at: Sequence[int], num_pos: int, like: Tensor) -> Call:
    """The call for one position per example; keys stay those of all positions."""

    def one(name: str, value: Tensor) -> Tensor:
        row, pos = AXES[name]
        each = [
            value.narrow(row, i if value.shape[row] > 1 else 0, 1).narrow(pos, p, 1)
            for i, p in enumerate(at)
        ]
        return torch.cat(each, row)

    return _map_known(_with_mask(call, num_pos, like), one)


def select_rows(call: Call, rows: Int[Tensor, " copy"], batch: int) -> Call:
    """The call for copies of the examples `rows` of a batch."""

    def select(name: str, value: Tensor) -> Tensor:
        axis, _ = axes(name, value)
        # Layers broadcast a single row over all examples themselves.
        single = batch == 1 and name in AXES
        shared = not value.ndim or value.ndim < -axis or value.shape[axis] != batch
        if shared or single:
            return value
        return value.index_select(axis, rows.to(value.device))

    args, kwargs = call
    selected = {name: map_tensors(partial(select, name), v) for name, v in kwargs.items()}
    return map_tensors(partial(select, ""), args), selected


def _with_mask(call: Call, num_pos: int, like: Tensor) -> Call:
    """The call with its mask made explicit: a missing one is causal only for square attention."""
    args, kwargs = call
    if kwargs.get("attention_mask") is None:
        kwargs = {**kwargs, "attention_mask": visible_keys(call, num_pos, like)}
    return args, kwargs


def _map_known(call: Call, fn: Callable[[str, Tensor], Tensor]) -> Call:
    args, kwargs = call
    known = {
        name: tree_map_only(Tensor, partial(fn, name), value)
        for name, value in kwargs.items()
        if name in AXES
    }
    return args, kwargs | known


class NoCacheError(Exception):
    """A layer has no keys and values to keep: it does not attend, or does not use a cache."""


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys, rotated by the model, and values of some positions."""

    keys: Float[Tensor, "batch heads keys d_head"]
    values: Float[Tensor, "batch heads keys d_value"]

    def concat(self, keys: Tensor, values: Tensor) -> "KeyValues":
        """Append those of later positions."""
        return KeyValues(torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2))

    def rows(self, rows: Tensor) -> "KeyValues":
        """Those of some examples; without a copy if there is a single one."""
        if len(self.keys) == 1:
            size = (len(rows), -1, -1, -1)
            return KeyValues(self.keys.expand(*size), self.values.expand(*size))
        rows = rows.to(self.keys.device)
        return KeyValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class _Cache:
    replace: Callable[[Tensor, Tensor], KeyValues]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys and values that attention uses in place of its new ones."""
        used = self.replace(keys, values)
        return used.keys, used.values


def keys_values(
    layer: nn.Module,
    h: Float[Tensor, "batch pos d_model"],
    call: Call,
    prefix: KeyValues | None = None,
) -> KeyValues:
    """Keys and values of a layer for its input `h`, after those of `prefix`.

    Raises:
        NoCacheError: The layer does not use a cache.
    """

    def stop(keys: Tensor, values: Tensor) -> KeyValues:
        raise StopForward(prefix.concat(keys, values) if prefix else KeyValues(keys, values))

    try:
        _run(layer, h, call, _Cache(stop))
    except StopForward as end:
        return end.value
    raise NoCacheError(f"{type(layer).__name__} does not use a cache")


def run_with_prefix(
    layer: nn.Module, h: Float[Tensor, "batch pos d_model"], call: Call, prefix: KeyValues | None
) -> Float[Tensor, "batch pos d_model"]:
    """The layer's output on `h`, which attends to the keys of `prefix` and to its own."""
    return _run(layer, h, call, _Cache(prefix.concat) if prefix else None)


def run_with_kv(
    layer: nn.Module, h: Float[Tensor, "batch pos d_model"], call: Call, kv: KeyValues
) -> Float[Tensor, "batch pos d_model"]:
    """The layer's output on `h`, which attends to the keys `kv`, its own included."""
    return _run(layer, h, call, _Cache(lambda *_: kv))


def _run(layer: nn.Module, h: Tensor, call: Call, cache: _Cache | None) -> Tensor:
    args, kwargs = call
    if cache is not None:
        kwargs = {**kwargs, "past_key_values": cache}
    with eager():
        return first_tensor(layer(h, *args, **kwargs))
