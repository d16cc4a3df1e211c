"""Serving edits: which one each example of a pass gets, and how its states are moved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate, MemoryEntry, Site, signals_of


@dataclass(eq=False)
class Serving:
    """The decision of the pass that is under way; it is taken once, on the prompt.

    Attributes:
        chosen: Which edit each example is served, -1 for none; None before it is decided.
    """

    vlm: VLM
    memories: Sequence[MemoryEntry]
    gate: Gate | None
    chosen: Int[Tensor, " batch"] | None = None
    _hidden: dict[int, Tensor] = field(default_factory=dict)

    def listener(self, layer: int) -> Callable[[Tensor], None]:
        """What keeps a layer's output; with the last one that the gate reads, it decides."""

        def listen(h: Tensor) -> None:
            batch = self.vlm.active_batch
            if batch is None:
                raise AttribError(
                    "an edit holds for passes by vlm.logits(batch) and vlm.generate(batch): only "
                    "they tell where images and prompts stand"
                )
            if h.shape[1] != batch["last"].shape[1]:
                return  # a later step of generating
            self._hidden[layer] = h.detach()
            if len(self._hidden) == len(self._gate.layers):
                self.chosen = self._decide(batch)
                self._hidden.clear()

        return listen

    def positions(self, site: Site) -> Callable[[Batch], Bool[Tensor, "batch pos"]]:
        """What tells where a site writes in a batch: nowhere in examples that are not served."""

        def at(batch: Batch) -> Bool[Tensor, "batch pos"]:
            span = site.positions(batch.spans)
            return (
                span if self.gate is None else span & (self._chosen >= 0).to(span.device)[:, None]
            )

        return at

    def writer(self, site: Site) -> Callable[[Tensor], Tensor]:
        """What moves the states of the examples that are served, each by its own edit."""

        @torch.no_grad()
        def move(h: Tensor) -> Tensor:
            chosen = (
                self._chosen if self.gate is not None else torch.zeros(len(h), dtype=torch.long)
            )
            served = (chosen >= 0).nonzero()[:, 0].to(h.device)
            if not len(served):
                return h
            edit = signals_of(self.memories, site.key, chosen[chosen >= 0])
            return h.index_copy(0, served, site.adapter(h[served], edit).to(h.dtype))

        return move

    @property
    def _gate(self) -> Gate:
        assert self.gate is not None
        return self.gate

    @property
    def _chosen(self) -> Int[Tensor, " batch"]:
        assert self.chosen is not None, "the gate reads a layer behind the first write"
        return self.chosen

    @torch.no_grad()
    def _decide(self, batch: Batch) -> Int[Tensor, " batch"]:
        queries = self._gate.states(self._hidden, batch)
        scores = self._gate.scores(queries, [memory.gate for memory in self.memories])
        best, nearest = scores.max(1)
        return torch.where(best >= self._gate.threshold, nearest, -1)
