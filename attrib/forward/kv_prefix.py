"""Keys and values of positions that a layer is not run on, given to it as its cache.

Attention layers of transformers hand their new keys and values to `past_key_values.update` and
attend to what it returns. Whatever has this method can stand in for a cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.forward.hooks import first_tensor
from attrib.forward.layer_call import Call


class NoCacheError(Exception):
    """A layer has no keys and values that could be kept: it does not attend, or in its own way."""


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys, rotated as the model does, and values of some positions."""

    keys: Float[Tensor, "batch heads keys d_head"]
    values: Float[Tensor, "batch heads keys d_value"]

    def then(self, keys: Tensor, values: Tensor) -> "KeyValues":
        """These in front of those of later positions."""
        return KeyValues(torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2))

    def rows(self, rows: Tensor) -> "KeyValues":
        """Those of some examples; of a single one without a copy."""
        if len(self.keys) == 1:
            size = (len(rows), -1, -1, -1)
            return KeyValues(self.keys.expand(*size), self.values.expand(*size))
        rows = rows.to(self.keys.device)
        return KeyValues(self.keys.index_select(0, rows), self.values.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class _Cache:
    take: Callable[[Tensor, Tensor], KeyValues]

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What attention is to use instead of its own new keys and values."""
        used = self.take(keys, values)
        return used.keys, used.values


class _Found(Exception):
    """Keys and values are there; what the layer goes on to do with them is not wanted."""

    def __init__(self, found: KeyValues):
        super().__init__()
        self.found = found


def keys_values(
    layer: nn.Module,
    h: Float[Tensor, "batch pos d_model"],
    call: Call,
    kept: KeyValues | None = None,
) -> KeyValues:
    """Keys and values of a layer for its input `h`, after the kept ones; the layer is left there.

    Raises:
        NoCacheError: The layer has done its work without asking for a cache.
    """

    def stop(keys: Tensor, values: Tensor) -> KeyValues:
        new = KeyValues(keys, values)
        raise _Found(kept.then(keys, values) if kept else new)

    try:
        _run(layer, h, call, _Cache(stop))
    except _Found as end:
        return end.found
    raise NoCacheError(f"{type(layer).__name__} does not use a cache")


def run_with_prefix(
    layer: nn.Module, h: Float[Tensor, "batch pos d_model"], call: Call, kept: KeyValues | None
) -> Float[Tensor, "batch pos d_model"]:
    """The layer's output on `h`, which attends to the kept keys in front of its own."""
    if kept is None:
        args, kwargs = call
        return first_tensor(layer(h, *args, **kwargs))
    return _run(layer, h, call, _Cache(kept.then))


def run_with_kv(
    layer: nn.Module, h: Float[Tensor, "batch pos d_model"], call: Call, given: KeyValues
) -> Float[Tensor, "batch pos d_model"]:
    """The layer's output on `h`, which attends to the given keys, its own being among them."""
    return _run(layer, h, call, _Cache(lambda *_: given))


def _run(layer: nn.Module, h: Tensor, call: Call, cache: _Cache) -> Tensor:
    args, kwargs = call
    return first_tensor(layer(h, *args, **{**kwargs, "past_key_values": cache}))
