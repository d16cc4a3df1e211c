"""What attention and MLP of every layer write to the residual stream, found numerically."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from attrib.forward.hooks import on_input, on_output
from attrib.forward.residual import (
    Positions,
    ResidualWrites,
    Step,
    is_later_step,
    match_sublayers,
    pick,
    rows_of,
)
from attrib.model.vlm import VLM

__all__ = ["ResidualWrites", "residual_writes"]


@contextmanager
def residual_writes(vlm: VLM, positions: Positions) -> Iterator[ResidualWrites]:
    """Keep what attention and MLP of every layer write to the stream at a position per example.

    Which submodules write is found numerically: the two whose outputs add up to what the layer did
    to the stream. This covers pre-norm, sandwich norms and parallel attention without a list of
    names.

    Args:
        vlm: The model.
        positions: One per example, as indices or as a mask, or several as "batch several" indices.

    Yields:
        ResidualWrites, filled by the forward pass inside the context.

    Raises:
        AttribError: No two submodules of a layer account for its output.
    """
    rows = rows_of(positions)
    writes = ResidualWrites({})
    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(_keep_writes(layer, i, rows, writes.steps))
        yield writes


@contextmanager
def _keep_writes(
    layer: nn.Module, index: int, rows: Tensor, steps: dict[int, Step]
) -> Iterator[None]:
    into: list[Tensor] = []
    outputs: dict[str, Tensor] = {}

    def enter(h: Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        into[:] = [] if is_later_step(h.shape[1], rows) else [h]
        outputs.clear()

    def keeper(name: str) -> Callable[[Tensor], None]:
        def keep(output: Tensor) -> None:
            # OPT's fc2 returns "batch*pos d_model".
            if into and isinstance(output, Tensor) and output.numel() == into[0].numel():
                outputs[name] = pick(output.reshape(into[0].shape), rows)

        return keep

    def leave(out: Tensor) -> None:
        if into:
            before, after = pick(into[0], rows), pick(out, rows)
            steps[index] = (before, *match_sublayers(before, after, outputs, index), after)

    with ExitStack() as stack:
        stack.enter_context(on_input(layer, enter))
        for name, child in layer.named_children():
            stack.enter_context(on_output(child, keeper(name)))
        stack.enter_context(on_output(layer, leave))
        yield
