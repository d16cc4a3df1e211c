"""Edits of hidden states: which edit, if any, applies to an input, and the writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.forward.hooks import on_output, write
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.lookup import EditIndex, index_of
from editors.adapters.sites import Gate, MemoryEntry, Site, select_signals

Some = TypeVar("Some", bound="GatedEdit")


class GatedEdit:
    """Encoded edits behind a gate, or one edit without: what edits of several editors share."""

    needs: ClassVar[str]  # what several edits need, for the message
    memories: Sequence[MemoryEntry]
    gate: Gate | None

    def __post_init__(self):
        if self.gate is None and len(self.memories) != 1:
            raise AttribError(f"{len(self.memories)} edits together need {self.needs}")

    def without(self: Some, request: EditRequest) -> Some:
        """The other edits, where the one of this very request (the object) is unlearned.

        The model answers as if that edit had never been made, bit for bit.

        Raises:
            AttribError: It is not among them.
        """
        left = [memory for memory in self.memories if memory.request is not request]
        if len(left) == len(self.memories):
            raise AttribError(f"no edit of {request!r} to remove")
        return replace(self, memories=left)  # pyright: ignore[reportArgumentType]

    @property
    def num_bytes(self) -> int:
        """Bytes of the encoded edits; networks are shared by any number of them."""
        return sum(memory.num_bytes for memory in self.memories)

    @cached_property
    def index(self) -> EditIndex | None:
        """Finds the edit that applies to an input; made once."""
        if self.gate is None:
            return None
        return index_of(self.gate, [memory.gate for memory in self.memories])

    @torch.no_grad()
    def of_rows(
        self: Some, vlm: VLM, batch: Batch, hidden: Mapping[int, Tensor] | None = None
    ) -> list[Some | None]:
        """What answers each example: this edit, or None for the unedited model.

        A single edit is returned without its gate, which has decided.

        Args:
            vlm: The model.
            batch: The examples.
            hidden: The unedited model's outputs by layer, where they are known.
        """
        if self.gate is None or self.index is None or self.reads_target:
            return [self] * batch.size
        read = states_up_to(vlm, batch, self.gate.layers, hidden)
        chosen = self.index.nearest(self.gate.states(read, batch)).tolist()
        return [self._decided if i >= 0 else None for i in chosen]

    @cached_property
    def _decided(self: Some) -> Some:
        if len(self.memories) > 1:
            return self
        return replace(self, gate=None)  # pyright: ignore[reportArgumentType]

    @property
    def reads_target(self) -> bool:
        """Whether the gate reads the answers of teacher-forced inputs."""
        return bool(getattr(self.gate, "reads_target", False))

    @contextmanager
    def routed(self, vlm: VLM) -> Iterator["Router"]:
        """Let the gate decide in passes inside; return its decisions."""
        router = Router(vlm, self.memories, self.gate, self.index)
        with ExitStack() as stack:
            for layer in () if self.gate is None else self.gate.layers:
                stack.enter_context(on_output(vlm.layers[layer], router.capture_hook(layer)))
            yield router


@dataclass(frozen=True, eq=False)
class HiddenEdit(GatedEdit):
    """Edits applied by adapters: the gate picks the nearest edit for each input, or none.

    Attributes:
        sites: The adapters, in layer order.
        memories: The encoded edits.
        gate: Decides which edit applies; None applies the only edit to every input.
    """

    needs: ClassVar[str] = (
        "a gate that picks one per input; edit with a gate, or apply one edit at a time"
    )

    sites: Sequence[Site]
    memories: Sequence[MemoryEntry]
    gate: Gate | None = None

    @property
    def causal(self) -> bool:
        """See `editors.base.is_causal`: writes at prompts, behind a gate that reads prompts."""
        return not self.reads_target

    @property
    def first_layer(self) -> int:
        """The first layer that is written or read."""
        read = () if self.gate is None else self.gate.layers
        return min((*(site.layer for site in self.sites), *read))

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply the edits to passes of `vlm.logits` and `vlm.generate`."""
        with self.routed(vlm) as router, ExitStack() as stack:
            for site in self.sites:
                fn = router.intervention(site)
                stack.enter_context(write(vlm, site.layer, fn, at=router.positions(site)))
            yield

    def __repr__(self) -> str:
        gate = "no gate" if self.gate is None else repr(self.gate)
        sites = ", ".join(site.key for site in self.sites)
        shown = [f"  {m.request.prompt!r} -> {m.request.target!r}" for m in self.memories[:5]]
        more = len(self.memories) - len(shown)
        head = (
            f"HiddenEdit({len(self.memories)} edits, {self.num_bytes:,} bytes, at {sites}, {gate})"
        )
        return "\n".join([head, *shown, *([f"  and {more} more"] if more else [])])


@dataclass(eq=False)
class Router:
    """The gate's decision for the current pass, taken once, on the prompt.

    Attributes:
        index: Finds the edit of an input among the memories, where there is a gate.
        chosen: Index of the edit that applies to each example, -1 for none; None before the gate
            has decided.
    """

    vlm: VLM
    memories: Sequence[MemoryEntry]
    gate: Gate | None
    index: EditIndex | None
    chosen: Int[Tensor, " batch"] | None = None
    _hidden: dict[int, Tensor] = field(default_factory=dict)

    def capture_hook(self, layer: int) -> Callable[[Tensor], None]:
        """Return a hook that captures a layer's output; the last captured layer decides."""

        def capture(h: Tensor) -> None:
            assert self.gate is not None
            batch = active_batch(self.vlm, "a gated edit")
            if h.shape[1] != batch["last"].shape[1]:
                return  # a later step of generation
            self._hidden[layer] = h.detach()
            if len(self._hidden) == len(self.gate.layers):
                self.chosen = self._choose(self.gate, batch)
                self._hidden.clear()

        return capture

    def positions(self, site: Site) -> Callable[[Batch], Bool[Tensor, "batch pos"]]:
        """Return a function from a batch to the positions that a site writes."""

        def at(batch: Batch) -> Bool[Tensor, "batch pos"]:
            span = site.positions(batch.spans)
            return span & (self.edit_index(batch.size) >= 0).to(span.device)[:, None]

        return at

    def intervention(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Return a function that applies each example's own edit to a layer's output."""

        @torch.no_grad()
        def apply(h: Tensor) -> Tensor:
            chosen = self.edit_index(len(h))
            rows = (chosen >= 0).nonzero()[:, 0].to(h.device)
            if not len(rows):
                return h
            edit = select_signals(self.memories, site.key, chosen[chosen >= 0]).to(h.device)
            return h.index_copy(0, rows, site.adapter(h[rows], edit).to(h.dtype))

        return apply

    def edit_index(self, num: int) -> Int[Tensor, " batch"]:
        """Index of the edit that applies to each of `num` examples, -1 for none."""
        if self.gate is None:
            return torch.zeros(num, dtype=torch.long)
        assert self.chosen is not None, "the gate reads a layer after the first write"
        return self.chosen

    @torch.no_grad()
    def _choose(self, gate: Gate, batch: Batch) -> Int[Tensor, " batch"]:
        queries = gate.states(self._hidden, batch)
        assert self.index is not None
        return self.index.nearest(queries)


def active_batch(vlm: VLM, what: str) -> Batch:
    """The batch of the current pass; raise AttribError, naming `what` needs it, outside of one."""
    if vlm.active_batch is None:
        raise AttribError(
            f"{what} needs the positions of images and prompts: run the model by "
            "vlm.logits(batch) or vlm.generate(batch)"
        )
    return vlm.active_batch
