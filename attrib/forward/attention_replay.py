"""What one forward pass did in each layer's attention, and that attention run again by itself."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrib.forward.attention import AttentionCall, capture_attention
from attrib.forward.hooks import first_tensor, gather_positions, is_cached_step, on_input, on_output
from attrib.forward.replay import UNREPEATED
from attrib.model.vlm import VLM

Site = Literal["block", "attention"]


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """How a module was called.

    Attributes:
        module: the module.
        hidden: its hidden states.
        args: its other positional arguments.
        kwargs: its other arguments by name.
    """

    module: nn.Module
    hidden: Float[Tensor, "batch pos d_model"]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(eq=False)
class AttentionRecord:
    """One layer's attention in one forward pass.

    Attributes:
        layer: which layer.
        block: how the layer was called.
        attention: how its attention module was called, the submodule that attends and projects.
        call: queries, keys and values.
        out: what the attention module returned at one position per example.
    """

    layer: int
    block: ModuleCall
    attention: ModuleCall | None = None
    call: AttentionCall | None = None
    out: Float[Tensor, "batch d_model"] | None = None
    entered: dict[int, ModuleCall] = field(default_factory=dict)

    def entry(self, site: Site) -> ModuleCall:
        """Where states go in: at the layer's input, or at its attention's behind the norm."""
        assert self.attention is not None
        return self.block if site == "block" else self.attention

    def replay(
        self, site: Site, hidden: Float[Tensor, "batch some d_model"], at: Tensor | None = None
    ) -> Float[Tensor, "batch some d_model"]:
        """What the attention module returns when other states go in.

        Args:
            site: where they go in.
            hidden: the states.
            at: Int "batch some", at which positions of the pass they stand; None for all of them.
        """
        entry = self.entry(site)
        assert self.attention is not None
        args, kwargs = entry.args, entry.kwargs
        if at is not None:
            pos = entry.hidden.shape[1]
            args, kwargs = (_at_positions(part, at, pos) for part in (args, kwargs))
        kwargs = {name: value for name, value in kwargs.items() if name not in UNREPEATED}
        with on_output(self.attention.module, _reach):
            try:
                return first_tensor(entry.module.forward(hidden, *args, **kwargs))
            except _Reached as reached:
                return reached.out


class _Reached(Exception):
    """Nothing behind the attention module needs to run."""

    def __init__(self, out: Tensor):
        super().__init__()
        self.out = out


def _reach(out: Tensor) -> None:
    raise _Reached(out)


def _at_positions(value: Any, at: Int[Tensor, "batch some"], pos: int) -> Any:
    """`value` at some of the `pos` positions, inside tuples and dicts too; masks are dropped."""
    if isinstance(value, tuple):
        return tuple(_at_positions(part, at, pos) for part in value)
    if isinstance(value, dict):
        kept = {name: _at_positions(part, at, pos) for name, part in value.items()}
        return kept | {"attention_mask": None} if "attention_mask" in kept else kept
    if not isinstance(value, Tensor) or pos not in value.shape[1:]:
        return value
    axis = value.shape.index(pos, 1)
    if value.shape[axis - 1] not in (1, len(at)):
        return value
    examples = value.movedim((axis - 1, axis), (0, 1)).expand(len(at), pos, *_others(value, axis))
    row = torch.arange(len(at), device=value.device)[:, None]
    return examples[row, at.to(value.device)].movedim((0, 1), (axis - 1, axis))


def _others(value: Tensor, axis: int) -> list[int]:
    return [size for i, size in enumerate(value.shape) if i not in (axis - 1, axis)]


@contextmanager
def each_attention(
    vlm: VLM,
    last: Int[Tensor, " batch"],
    layers: Collection[int],
    work: Callable[[AttentionRecord], None],
) -> Iterator[None]:
    """Call `work` for each of `layers` during the forward pass inside the context.

    A layer's turn comes when the next layer begins, so that whatever else looks at the pass is done
    with it, and nothing is kept for long. Layers that do not attend have no turn.
    """
    pending: list[AttentionRecord] = []

    def finish() -> None:
        for attended in [*pending]:
            pending.clear()  # what `work` runs is not part of the pass
            if attended.call is not None:
                work(attended)

    def listen(layer: int, call: AttentionCall) -> None:
        if pending and pending[0].layer == layer:
            # The submodule that was entered last, and not left, is the one that attends.
            pending[0].call, pending[0].attention = call, [*pending[0].entered.values()][-1]

    with ExitStack() as stack:
        stack.enter_context(capture_attention(vlm, listen))
        for i, layer in enumerate(vlm.layers):
            wanted = i if i in layers else None
            stack.enter_context(on_input(layer, _beginner(pending, finish, layer, wanted, last)))
            if wanted is not None:
                for child in layer.children():
                    stack.enter_context(_watch(child, pending, last))
        yield
        finish()


def _beginner(
    pending: list[AttentionRecord],
    finish: Callable[[], None],
    module: nn.Module,
    layer: int | None,
    last: Tensor,
) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
    def begin(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        finish()
        if layer is not None and not is_cached_step(h.shape[1], last):
            pending.append(AttentionRecord(layer, ModuleCall(module, h, args, kwargs)))

    return begin


@contextmanager
def _watch(child: nn.Module, pending: list[AttentionRecord], last: Tensor) -> Iterator[None]:
    """Note how a submodule of a layer is called, and what it returns if it is the one attending."""

    def enter(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if pending and pending[0].call is None:
            pending[0].entered[id(child)] = ModuleCall(child, h, args, kwargs)

    def leave(out: Tensor) -> None:
        if pending:
            one = pending[0]
            if one.attention is not None and one.attention.module is child:
                one.out = gather_positions(out, last)
            one.entered.pop(id(child), None)

    with on_input(child, enter), on_output(child, leave):
        yield
