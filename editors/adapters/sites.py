"""Sites: the layers and positions that adapters write, their configuration, and encoded edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.devices import execution_device
from attrib.model.vlm import VLM
from editors.adapters import EditAdapter, Init
from editors.adapters.edit_signal import (
    EditSignal,
    EditSignalBatch,
    SignalKind,
    SignalSpan,
    edit_signal,
    pad_signals,
    signal_width,
)

Modality = Literal["text", "visual"]
MapperTarget = Literal["paper", "published", "0.1-sigma"]
Layers = Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class MemoryEntry:
    """One encoded edit.

    Attributes:
        request: The edit request.
        signals: What each site's adapter attends to, by the site's key.
        gate: What the gate compares inputs with.
    """

    request: EditRequest
    signals: dict[str, EditSignal]
    gate: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        gate = sum(t.nbytes for t in self.gate.values())
        return gate + sum(signal.num_bytes for signal in self.signals.values())


@runtime_checkable
class Gate(Protocol):
    """Decides which edit, if any, applies to an input.

    None of its `layers` may lie after the first layer that is written.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose outputs it reads."""
        ...

    @property
    def threshold(self) -> float:
        """Lowest score at which it opens."""
        ...

    def states(self, hidden: dict[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Features of each example, of inputs and of edits alike.

        Args:
            hidden: The output of each of `layers`, "batch pos d_model", before any write.
            batch: The batch that is run; an edit's includes its target.
        """
        ...

    def scores(
        self, queries: Sequence[dict[str, Tensor]], edits: Sequence[dict[str, Tensor]]
    ) -> Float[Tensor, "query edit"]:
        """Similarity of each input to each edit; higher is more similar."""
        ...


@dataclass(frozen=True, eq=False)
class Site:
    """Where an adapter writes: the output of a layer at the positions of one modality.

    Attributes:
        layer: Counted from 0.
        modality: "visual" for the visual tokens, "text" for the other prompt tokens.
        adapter: The adapter.
        write_last: Whether "text" includes the last prompt token; not in the papers.
    """

    layer: int
    modality: Modality
    adapter: EditAdapter
    write_last: bool = False

    @property
    def key(self) -> str:
        """Name of the site, such as "text-4"."""
        return f"{self.modality}-{self.layer}"

    def positions(self, spans: dict[str, Bool[Tensor, "batch pos"]]) -> Bool[Tensor, "batch pos"]:
        """Positions that the site writes."""
        if self.modality == "visual" or self.write_last:
            return spans[self.modality]
        return spans["text"] & ~spans["last"]


class AdapterOptions(BaseModel):
    """Sizes of adapters, and what they attend to.

    Attributes:
        d_adapter: Width inside an adapter (both papers: 1024).
        num_heads: Attention heads of an adapter (both papers: 8).
        init: "identity" starts without effect; "published" as in the published code.
        signal: What the adapters attend to: the edit's states at the "site" (the papers), its
            input embeddings ("embed"), "both", or "none" (VisEdit's ablation without
            cross-attention).
        signal_span: Positions of the edit they attend to: "all" (the papers), or "answer", the
            last prompt token and the target.
        signal_window: Number of consecutive positions concatenated into each attended state (the
            papers: 1). Answers of many words need more: see `edit_signal.windows`.
        write_last: Whether text adapters also write the last prompt token; not in the papers.
        mapper: Whether visual adapters have an influence mapper (VisEdit).
        mapper_target: Noise of the heatmaps that supervise the mapper: 3 standard deviations of a
            layer's input ("paper"), 0.7 after its norm ("published", the published code), or 0.1
            standard deviations ("0.1-sigma").
        mapper_query: Whose heatmap supervises the mapper on a generality input: that of the input
            with its "own" prompt; that of the "edit"'s prompt, with the input's visual states in
            place of the edit's (VisEdit Eq. 18); or the "request"'s own, whatever the input (the
            published code, in which the replacement fails).
        mapper_inputs: Whether a step takes "one" of request and generality inputs (the code), or
            sums over "all" (Eq. 16).
        mapper_mean: Whether heatmaps are averaged over layers "before" they are normalised to
            shares (the code), or "after" (Eq. 19).
        own_units: Whether adapters standardise every channel over the training edits; the papers
            do not. The name is that of saved settings.
    """

    model_config = ConfigDict(frozen=True)

    d_adapter: int = 1024
    num_heads: int = 8
    init: Init = "identity"
    signal: SignalKind = "site"
    signal_span: SignalSpan = "all"
    signal_window: int = Field(1, ge=1)
    write_last: bool = False
    mapper: bool = False
    mapper_target: MapperTarget = "paper"
    mapper_query: Literal["own", "edit", "request"] = "own"
    mapper_inputs: Literal["one", "all"] = "one"
    mapper_mean: Literal["before", "after"] = "before"
    own_units: bool = False

    def build(self, vlm: VLM, layers: Layers, seed: int) -> list[Site]:
        """Return sites with freshly initialised adapters, in the order in which they write.

        Args:
            vlm: The model.
            layers: The layers whose output is written, by modality, counted from 0.
            seed: Seed of the weights.

        Raises:
            AttribError: A layer that the model does not have, an unknown modality, or no layer.
        """
        check_layers(vlm, layers)
        pairs = [(layer, m) for m, some in layers.items() for layer in some]
        # Of two adapters at one layer, the visual one writes first, as published.
        pairs.sort(key=lambda pair: (pair[0], pair[1] == "text"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [self._site(vlm, *pair) for pair in pairs]

    def signal_at(
        self, layer: int, hidden: Mapping[int, Float[Tensor, "pos d_model"]], last: int
    ) -> EditSignal:
        """Return what the adapter at `layer` attends to, given the edit's hidden states."""
        what = (self.signal, self.signal_span, layer)
        return edit_signal(*what, hidden, last, self.signal_window)

    def _site(self, vlm: VLM, layer: int, modality: Any) -> Site:
        adapter = EditAdapter(
            vlm.d_model,
            self.d_adapter,
            self.num_heads,
            self.init,
            self.mapper and modality == "visual",
            signal_width(self.signal, vlm.d_model, self.signal_window),
        )
        adapter.to(execution_device(vlm.layers[layer]))
        return Site(layer, modality, adapter, self.write_last)


def check_layers(vlm: VLM, layers: Layers) -> None:
    """Raise AttribError for layers that the model does not have, and for none at all."""
    known = f"{vlm.name} has layers 0 to {vlm.num_layers - 1}"
    if unknown := sorted(set(layers) - {"text", "visual"}):
        raise AttribError(f"layers: no modality {unknown[0]!r}; there are 'text' and 'visual'")
    chosen = [layer for some in layers.values() for layer in some]
    if not chosen:
        raise AttribError(f"layers: none given; {known}")
    if outside := [layer for layer in chosen if not 0 <= layer < vlm.num_layers]:
        raise AttribError(f"layers: there is no layer {outside[0]}; {known}")
    for modality, some in layers.items():
        if len(set(some)) < len(some):
            raise AttribError(f"layers: {modality} names a layer twice: {list(some)}")


def select_signals(
    memories: Sequence[MemoryEntry], key: str, chosen: Int[Tensor, " batch"]
) -> EditSignalBatch:
    """Return, for each example, the signal of its `chosen` edit at the site called `key`."""
    # Only those that are chosen are padded: there may be a thousand others.
    return pad_signals([memories[i].signals[key] for i in chosen.tolist()])


def tensors_of(memories: Sequence[MemoryEntry]) -> dict[str, Tensor]:
    """The tensors of encoded edits, by number and part."""
    tensors: dict[str, Tensor] = {}
    for i, memory in enumerate(memories):
        tensors |= {f"{i}/signal/{k}": s.states for k, s in memory.signals.items()}
        tensors |= {f"{i}/last/{k}": s.last for k, s in memory.signals.items()}
        tensors |= {f"{i}/gate/{k}": v for k, v in memory.gate.items()}
    return tensors


def memories_from(
    requests: Sequence[EditRequest], tensors: Mapping[str, Tensor]
) -> list[MemoryEntry]:
    """The encoded edits of `tensors_of`."""
    parts: list[dict[str, dict[str, Tensor]]]
    parts = [{"signal": {}, "last": {}, "gate": {}} for _ in requests]
    for name, value in tensors.items():
        number, part, key = name.split("/", 2)
        parts[int(number)][part][key] = value
    signals = [{k: EditSignal(v, p["last"][k]) for k, v in p["signal"].items()} for p in parts]
    found = zip(requests, signals, parts, strict=True)
    return [MemoryEntry(request, own, p["gate"]) for request, own, p in found]
