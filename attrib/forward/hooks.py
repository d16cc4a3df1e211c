"""Read or write the hidden states of decoder layers: the only file that registers hooks.

All contexts see the residual stream, nest, and act in the order they were entered: a `read` entered
after a `write` sees what was written. Hooks are registered on entering a block and gone on leaving
it, also when an error passes through. Layers are counted from 0; a layer stands for its output.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


@contextmanager
def read(vlm: VLM, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Keep the output of `layers` (default: all) during the forward passes inside the context.

    Yields:
        A dict that each pass fills: layer -> Float "batch pos d_model". The tensors are the model's
        own, attached to its graph: clone a slice that is to outlive the rest, detach what needs no
        gradient.
    """
    hidden: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(vlm.num_layers) if layers is None else layers:
            keep = keep_in(hidden, layer)
            stack.enter_context(on_output(_layer(vlm, layer), keep))
        yield hidden


@contextmanager
def write(
    vlm: VLM,
    layer: int,
    fn: Callable[[Tensor], Tensor],
    at: Bool[Tensor, "batch pos"] | Callable[[Batch], Bool[Tensor, "batch pos"]],
) -> Iterator[None]:
    """Replace a layer's output by `fn` of it where `at` holds; elsewhere it stays bit-identical.

    While generating, only the pass over the prompt is written: each later pass sees one new
    position, which belongs to no span of the prompt.

    Args:
        vlm: The model.
        layer: Whose output to write.
        fn: Maps the whole output, "batch pos d_model", to the same shape.
        at: Where the result lands; or what tells it of any batch that `vlm.logits` or
            `vlm.generate` runs inside the context.

    Raises:
        AttribError: When a forward pass has other positions than `at`, or `fn` changes the shape.
    """

    def put(h: Tensor) -> Tensor | None:
        where = at if isinstance(at, Tensor) else at(_running(vlm, layer))
        if h.shape[1] == 1 < where.shape[1]:
            return None
        if h.shape[:2] != where.shape:
            raise AttribError(
                f"write at layer {layer}: the pass has (batch, pos) {tuple(h.shape[:2])}, `at` "
                f"{tuple(where.shape)}; use a span of the batch that is run, and encode it with "
                "padding_side='left' to write while generating"
            )
        new = fn(h)
        if new.shape != h.shape:
            raise AttribError(
                f"write at layer {layer}: fn returned {tuple(new.shape)} for {tuple(h.shape)}; "
                "return the whole output, `at` picks from it"
            )
        return torch.where(where.to(h.device)[..., None], new.to(h.dtype), h)

    with on_output(_layer(vlm, layer), put):
        yield


def _running(vlm: VLM, layer: int) -> Batch:
    batch = vlm.active_batch
    if batch is None:
        raise AttribError(
            f"write at layer {layer}: which positions to write is told by the batch; run it with "
            "vlm.logits(batch) or vlm.generate(batch)"
        )
    return batch


def keep_in(into: dict[int, Tensor], layer: int) -> Callable[[Tensor], None]:
    """A hook that stores a layer's output in `into`."""

    def keep(h: Tensor) -> None:
        into[layer] = h

    return keep


def _layer(vlm: VLM, layer: int) -> nn.Module:
    if not 0 <= layer < vlm.num_layers:
        raise AttribError(f"layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    return vlm.layers[layer]


@contextmanager
def on_input(
    layer: nn.Module, fn: Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Call `fn(hidden states, other arguments, keyword arguments)` before `layer` runs."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            fn(args[0], args[1:], kwargs)
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            fn(kwargs["hidden_states"], (), rest)

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `fn` on what `module` returns; what `fn` returns, if anything, takes its place."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        new = fn(first_tensor(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


Positions = Int[Tensor, "batch *several"] | Bool[Tensor, "batch pos"]


def position_index(positions: Positions) -> Int[Tensor, "batch *several"]:
    """Positions as indices: one per example from a mask; indices as they are.

    Raises:
        AttribError: A mask does not have one True per row.
    """
    if positions.dtype != torch.bool:
        return positions
    if not (positions.sum(1) == 1).all():
        raise AttribError("positions: expected one True per row, as in batch['last']")
    return positions.int().argmax(1)


def is_cached_step(num_pos: int, rows: Tensor) -> bool:
    """Whether a pass is a cached step of generation.

    Raises:
        AttribError: It is not, and yet some position is beyond its end.
    """
    beyond = int(rows.max()) >= num_pos
    if beyond and num_pos > 1:
        raise AttribError(f"position {int(rows.max())}: the pass has positions 0 to {num_pos - 1}")
    return beyond


def gather_positions(
    h: Float[Tensor, "batch pos *width"], rows: Int[Tensor, "batch *several"]
) -> Float[Tensor, "batch *several_width"]:
    """The states at one position per example, or at several."""
    example = torch.arange(len(rows), device=h.device).reshape(-1, *[1] * (rows.ndim - 1))
    # Indexing copies: a view would keep the whole tensor alive.
    return h[example, rows.to(h.device)]


def first_tensor(output: Any) -> Tensor:
    """The hidden states a module returns: alone, or (older transformers) first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
