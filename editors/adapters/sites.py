"""Where adapters write, what is kept of an edit, and what a gate must tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.model.batch import Batch
from editors.adapters.adapter import EditAdapter
from editors.adapters.edit_signal import Signal, Signals, pad_signals

Modality = Literal["text", "visual"]


@dataclass(frozen=True, eq=False)
class MemoryEntry:
    """What is kept of one edit that is served from hidden states.

    Attributes:
        request: What is installed.
        signals: By the key of a site, what its adapter sees of the edit.
        gate: What the gate compares inputs with.
    """

    request: EditRequest
    signals: dict[str, Signal]
    gate: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        gate = sum(t.numel() * t.element_size() for t in self.gate.values())
        return gate + sum(signal.num_bytes for signal in self.signals.values())


@runtime_checkable
class Gate(Protocol):
    """Decides which edit, if any, an input is served.

    It reads the layers in `layers`, of which none lies behind the first site that writes.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Whose outputs it reads."""
        ...

    @property
    def threshold(self) -> float:
        """The score from which on it opens."""
        ...

    def states(self, hidden: dict[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """What it keeps of each example: of the inputs of a pass, and of an edit.

        Args:
            hidden: Per layer of `layers` its output, "batch pos d_model", before any write.
            batch: What is run; an edit's comes with its target.
        """
        ...

    def scores(
        self, queries: Sequence[dict[str, Tensor]], edits: Sequence[dict[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """How much each input looks like one that each edit is about; higher is more alike."""
        ...


@dataclass(frozen=True, eq=False)
class Site:
    """Where an adapter writes: the output of a layer, at the positions of a modality.

    Attributes:
        layer: Counted from 0.
        modality: "visual" for the visual tokens, "text" for the other prompt tokens.
        adapter: What it does there.
        write_last: Whether text includes the last prompt token; the papers leave it out.
    """

    layer: int
    modality: Modality
    adapter: EditAdapter
    write_last: bool = False

    @property
    def key(self) -> str:
        """A name of the site, such as "text-4"."""
        return f"{self.modality}-{self.layer}"

    def positions(self, spans: dict[str, Bool[Tensor, "batch pos"]]) -> Bool[Tensor, "batch pos"]:
        """Where it writes."""
        if self.modality == "visual" or self.write_last:
            return spans[self.modality]
        return spans["text"] & ~spans["last"]


def signals_of(memories: Sequence[MemoryEntry], key: str, chosen: Int[Tensor, " batch"]) -> Signals:
    """Per example the signal at a site of the edit that is `chosen` for it."""
    return pad_signals([m.signals[key] for m in memories]).rows(chosen)
