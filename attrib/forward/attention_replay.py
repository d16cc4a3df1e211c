"""Record each layer's attention in a forward pass, and replay that attention alone."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attrib.forward.attention import AttentionCall, capture_attention
from attrib.forward.hooks import (
    PositionGather,
    StopForward,
    first_tensor,
    gather_positions,
    on_input,
    on_output,
)
from attrib.forward.replay import without_cache
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from attrib.vocabulary import NoiseSite


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """A module, its input states, and its other arguments."""

    module: nn.Module
    hidden: Float[Tensor, "batch pos d_model"]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _call_of(module: nn.Module, h: Tensor, args: tuple[Any, ...], kwargs: Any) -> ModuleCall:
    # In a model split over devices the input may still be where the layer before left it.
    return ModuleCall(module, h.to(execution_device(module)), args, kwargs)


@dataclass(eq=False)
class AttentionRecord:
    """One layer's attention in one forward pass.

    Attributes:
        layer: Index of the layer.
        block: The call of the layer.
        attention: The call of its attention module, which attends and projects.
        call: Queries, keys and values.
        out: The attention module's output at one position per example, or at several.
        entered: Submodules that have been entered and not left, by id.
    """

    layer: int
    block: ModuleCall
    attention: ModuleCall | None = None
    call: AttentionCall | None = None
    out: Float[Tensor, "batch *several d_model"] | None = None
    entered: dict[int, ModuleCall] = field(default_factory=dict)

    def at_site(self, site: NoiseSite) -> ModuleCall:
        """The call whose input is the site: the layer, or its attention module after the norm."""
        assert self.attention is not None
        return self.block if site == "block" else self.attention

    def replay(
        self, site: NoiseSite, hidden: Float[Tensor, "batch some d_model"], at: Tensor | None = None
    ) -> Float[Tensor, "batch some d_model"]:
        """The output of the attention module for other states at a site.

        Args:
            site: Where the states go in.
            hidden: The states.
            at: Int "batch some", their positions in the pass; None for all positions.
        """
        call = self.at_site(site)
        assert self.attention is not None
        args, kwargs = call.args, without_cache(call.kwargs)
        if at is not None:
            args, kwargs = _select_positions((args, kwargs), at, call.hidden.shape[1])
            if "attention_mask" in kwargs:
                kwargs["attention_mask"] = None

        def stop(out: Tensor) -> None:
            raise StopForward(out)

        with on_output(self.attention.module, stop):
            try:
                return first_tensor(call.module.forward(hidden, *args, **kwargs))
            except StopForward as end:
                return end.value


def _select_positions(arguments: Any, at: Int[Tensor, "batch some"], pos: int) -> Any:
    """Select the positions `at` in every tensor that has an axis of `pos` positions."""

    def select(value: Tensor) -> Tensor:
        if pos not in value.shape[1:]:
            return value
        axis = value.shape.index(pos, 1)
        if value.shape[axis - 1] not in (1, len(at)):
            return value
        others = [size for i, size in enumerate(value.shape) if i not in (axis - 1, axis)]
        examples = value.movedim((axis - 1, axis), (0, 1)).expand(len(at), pos, *others)
        return gather_positions(examples, at).movedim((0, 1), (axis - 1, axis))

    return tree_map_only(Tensor, select, arguments)


@contextmanager
def each_attention(
    vlm: VLM,
    last: Int[Tensor, "batch *several"],
    layers: Collection[int],
    process: Callable[[AttentionRecord], None],
) -> Iterator[None]:
    """Call `process` for each of `layers` during the forward pass inside the context.

    A layer is processed when the next layer begins: other contexts on the same pass are done with
    it, and only one layer is kept in memory. Layers without attention are skipped. The attention
    module's output is kept at `last`: one position per example, or several.
    """
    pending: list[AttentionRecord] = []
    gather = PositionGather(last)

    def finish() -> None:
        for record in [*pending]:
            pending.clear()  # replays inside `process` are not part of the pass
            if record.call is not None:
                process(record)

    def listen(layer: int, call: AttentionCall) -> None:
        if pending and pending[0].layer == layer:
            # The submodule that was entered last, and not left, is the one that attends.
            pending[0].call, pending[0].attention = call, [*pending[0].entered.values()][-1]

    def beginner(layer: int) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
        def begin(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            finish()
            if layer in layers and not gather.is_cached_step(h.shape[1]):
                pending.append(AttentionRecord(layer, _call_of(vlm.layers[layer], h, args, kwargs)))

        return begin

    with ExitStack() as stack:
        stack.enter_context(capture_attention(vlm, listen))
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(on_input(layer, beginner(i)))
            for child in layer.children() if i in layers else ():
                stack.enter_context(_record_child(child, pending, gather))
        yield
        finish()


@contextmanager
def _record_child(
    child: nn.Module, pending: list[AttentionRecord], gather: PositionGather
) -> Iterator[None]:
    """Record the call of a layer's submodule, and its output if it is the one that attends."""

    def enter(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if pending and pending[0].call is None:
            pending[0].entered[id(child)] = _call_of(child, h, args, kwargs)

    def leave(out: Tensor) -> None:
        if pending:
            record = pending[0]
            if record.attention is not None and record.attention.module is child:
                record.out = gather(out)
            record.entered.pop(id(child), None)

    with on_input(child, enter), on_output(child, leave):
        yield
