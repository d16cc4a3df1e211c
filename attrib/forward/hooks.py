"""Read or write the hidden states of decoder layers: the only module that registers hooks.

All contexts see the residual stream, nest, and act in the order they were entered: a `read` entered
after a `write` sees the written states. Hooks are registered on entering a context and removed on
leaving it, also after an error. Layers are counted from 0; a layer stands for its output.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager

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


class StopForward(Exception):
    """Raised inside a forward pass to end it early with a value."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


@contextmanager
def on_input(
    module: nn.Module, fn: Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Call `fn(hidden states, other arguments, keyword arguments)` before `module` runs."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            fn(args[0], args[1:], kwargs)
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            fn(kwargs["hidden_states"], (), rest)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with eager():
            yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `fn` on the output of `module`; a returned tensor replaces it."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = fn(first_tensor(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        with eager():
            yield
    finally:
        handle.remove()


def first_tensor(output: Any) -> Tensor:
    """The hidden states of a module's output: alone, or (older transformers) first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


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


def gather_positions(
    h: Shaped[Tensor, "batch pos *width"], index: Int[Tensor, "batch *several"]
) -> Shaped[Tensor, "batch *several_width"]:
    """The states at one position per example, or at several, as a copy."""
    example = torch.arange(len(index), device=h.device).reshape(-1, *[1] * (index.ndim - 1))
    # Indexing copies: a view would keep the whole tensor alive.
    return h[example, index.to(h.device)]


def is_cached_step(num_pos: int, index: Tensor) -> bool:
    """Whether a pass of `num_pos` positions is a cached step of generation.

    Raises:
        AttribError: It is not, although some position in `index` is beyond its end.
    """
    beyond = int(index.max()) >= num_pos
    if beyond and num_pos > 1:
        raise AttribError(f"position {int(index.max())}: the pass has positions 0 to {num_pos - 1}")
    return beyond
