"""Read or write the hidden states of decoder layers; override their attention.

All contexts see the residual stream, nest, and act in the order they were entered: a `read` entered
after a `write` sees the written states. Hooks are registered on entering a context and removed on
leaving it, also after an error. Layers are counted from 0; a layer stands for its output.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.model.wrapped import StopForward, first_tensor, on_input, on_modules, on_output

__all__ = ["StopForward", "first_tensor", "on_input", "on_modules", "on_output"]  # for users here
Positions = Int[Tensor, "batch *several"] | Bool[Tensor, "batch pos"]


@contextmanager
def read(vlm: VLM, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Keep the output of `layers` (default: all) during the forward passes inside the context.

    Yields:
        A dict that each pass fills: layer -> Float "batch pos d_model". The tensors are the model's
        own and attached to its graph: clone a slice that outlives the rest, detach where no
        gradient is needed.
    """
    hidden: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(vlm.num_layers) if layers is None else layers:
            stack.enter_context(on_output(_layer(vlm, layer), store(hidden, layer)))
        yield hidden


@contextmanager
def write(
    vlm: VLM,
    layer: int,
    fn: Callable[[Tensor], Tensor],
    at: Bool[Tensor, "batch pos"] | Callable[[Batch], Bool[Tensor, "batch pos"]],
) -> Iterator[None]:
    """Replace a layer's output by `fn` of it where `at` is True; elsewhere it is bit-identical.

    During generation only the pass over the prompt is written: each later pass has one new
    position, which belongs to no span of the prompt.

    Args:
        vlm: The model.
        layer: Layer whose output is written.
        fn: Maps the whole output, "batch pos d_model", to the same shape.
        at: Where the result is written, or a function that returns this mask for any batch that
            `vlm.logits` or `vlm.generate` runs inside the context.

    Raises:
        AttribError: A forward pass has other positions than `at`, or `fn` changes the shape.
    """

    def replace(h: Tensor) -> Tensor | None:
        mask = at if isinstance(at, Tensor) else at(_active_batch(vlm, layer))
        if h.shape[1] == 1 < mask.shape[1]:
            return None
        if h.shape[:2] != mask.shape:
            raise AttribError(
                f"write at layer {layer}: the pass has (batch, pos) {tuple(h.shape[:2])}, `at` "
                f"{tuple(mask.shape)}; use a span of the batch that is run, and encode it with "
                "padding_side='left' to write during generation"
            )
        new = fn(h)
        if new.shape != h.shape:
            raise AttribError(
                f"write at layer {layer}: fn returned {tuple(new.shape)} for {tuple(h.shape)}; "
                "return the whole output, `at` selects from it"
            )
        return torch.where(mask.to(h.device)[..., None], new.to(h.dtype), h)

    with on_output(_layer(vlm, layer), replace):
        yield


def _active_batch(vlm: VLM, layer: int) -> Batch:
    if (batch := vlm.active_batch) is None:
        raise AttribError(
            f"write at layer {layer}: the positions depend on the batch; run it with "
            "vlm.logits(batch) or vlm.generate(batch)"
        )
    return batch


def _layer(vlm: VLM, layer: int) -> nn.Module:
    if not 0 <= layer < vlm.num_layers:
        raise AttribError(f"layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    return vlm.layers[layer]


def store(into: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    """Return a function for `on_output` that stores the output under `layer`."""

    def keep(h: Tensor) -> None:
        into[layer] = h

    return keep


def position_index(positions: Positions) -> Int[Tensor, "batch *several"]:
    """Positions as indices: one per example from a mask; indices are returned unchanged.

    Raises:
        AttribError: A mask does not have one True per row.
    """
    if positions.dtype != torch.bool:
        return positions
    if not (positions.sum(1) == 1).all():
        raise AttribError("positions: expected one True per row, as in batch['last']")
    return positions.int().argmax(1)


class PositionGather:
    """Gathers the states at one position per example, or at several.

    What depends on the positions alone is computed once per device. A GPU would otherwise be
    waited for at every module of a pass.

    Attributes:
        index: The positions as indices, "batch *several".
    """

    def __init__(self, positions: Positions):
        self.index = position_index(positions)
        self._at: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, h: Shaped[Tensor, "batch pos *width"]
    ) -> Shaped[Tensor, "batch *several_width"]:
        """The states at the positions, as a copy."""
        if h.device not in self._at:
            example = torch.arange(len(self.index), device=h.device)
            example = example.reshape(-1, *[1] * (self.index.ndim - 1))
            self._at[h.device] = example, self.index.to(h.device)
        # Indexing copies: a view would keep the whole tensor alive.
        return h[self._at[h.device]]

    def is_cached_step(self, num_pos: int) -> bool:
        """Whether a pass of `num_pos` positions is a cached step of generation.

        Raises:
            AttribError: It is not, although some position is beyond its end.
        """
        beyond = self._last >= num_pos
        if beyond and num_pos > 1:
            raise AttribError(f"position {self._last}: the pass has positions 0 to {num_pos - 1}")
        return beyond

    @cached_property
    def _last(self) -> int:
        return int(self.index.max())


def gather_positions(
    h: Shaped[Tensor, "batch pos *width"], index: Int[Tensor, "batch *several"]
) -> Shaped[Tensor, "batch *several_width"]:
    """The states at one position per example, or at several, as a copy."""
    return PositionGather(index)(h)


# Called by transformers with (module, query, key, value, mask, **options), tensors of
# "batch heads pos d_head"; returns the output, "batch pos heads d_head".
AttentionFn = Callable[..., Tensor]
# The function behind a name finds the one to call by the module's id. All threads share the name in
# the configuration and the function behind it, while this table belongs to one thread: a pass in
# another runs the model's own function. Names stay, since models look at them: some apply a sparse
# mask of their own for "eager" and "sdpa" only, and a soft-cap is applied by "eager" alone.
_FUNCTIONS: ContextVar[Mapping[int, AttentionFn] | None] = ContextVar("functions", default=None)
NAMES = ("sdpa", "eager")
_open = 0  # contexts in which the functions behind the names are ours
_lock = Lock()


def _usual(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    if getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager":
        # transformers registers no function for this name: each model's is beside its classes.
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager(module, *args, **options)
    return sdpa_attention_forward(module, *args, **options)


def own_attention(module: nn.Module, *args: Any, **options: Any) -> Tensor:
    """Attention as the module computes it without us: eagerly if its config says so, or by sdpa."""
    return _usual(module, *args, **options)[0]


def _attention(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    function = (_FUNCTIONS.get() or {}).get(id(module))
    return (
        (function(module, *args, **options), None) if function else _usual(module, *args, **options)
    )


def _count(change: int) -> None:
    """Keep our function behind the names for as long as any context is open."""
    global _open
    with _lock:
        _open += change
        AttentionInterface.register("sdpa", _attention if _open else sdpa_attention_forward)
        if _open:
            ALL_ATTENTION_FUNCTIONS["eager"] = _attention
        else:  # a name without a function: the model's own is called; no `register` takes one back
            ALL_ATTENTION_FUNCTIONS.pop("eager", None)


@contextmanager
def override_attention(
    root: nn.Module, wrap: Callable[[AttentionFn], AttentionFn]
) -> Iterator[None]:
    """Let the modules below `root` attend by `wrap(the function in force)` inside the context.

    A model set to "flash_attention_2", or another implementation than `NAMES`, uses sdpa meanwhile.
    """
    configs = {id(c): c for m in root.modules() if (c := getattr(m, "config", None))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    outer = _FUNCTIONS.get() or {}
    plain = wrap(own_attention)
    own = {id(m): wrap(outer[id(m)]) if id(m) in outer else plain for m in root.modules()}
    token = _FUNCTIONS.set({**outer, **own})
    _count(1)
    try:
        for config in configs.values():
            if config._attn_implementation not in NAMES:
                config._attn_implementation = NAMES[0]
        yield
    finally:
        _count(-1)
        _FUNCTIONS.reset(token)
        for key, config in configs.items():
            if config._attn_implementation != before[key]:
                config._attn_implementation = before[key]
