"""Where adapters are put, and how large they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.adapter import EditAdapter, Init
from editors.adapters.edit_signal import Signal, SignalKind, SignalSpan, signal_of, width_of_signals
from editors.adapters.sites import Site

Target = Literal["paper", "published", "gentle"]
Layers = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Adapters:
    """Where adapters write, and what they are.

    Attributes:
        layers: Per modality the layers whose output is written, counted from 0.
        d_adapter: Width inside an adapter (both papers: 1024).
        num_heads: Attention heads inside an adapter (both papers: 8).
        init: "identity" starts without an effect; "published" as the published code.
        signal: What the adapters attend to: the edit's states at the "site" (the papers), its
            input embeddings ("embed"), "both", or "none", which leaves nothing to edit with
            (VisEdit's ablation without cross-attention).
        signal_span: Which positions of the edit they attend to: "all" (the papers), or "answer",
            its last prompt token and its target.
        signal_window: How many positions of the edit each of these shows, itself and those before
            it (the papers: 1). Answers of many words need more: see
            `editors.adapters.edit_signal.windows`.
        write_last: Whether text adapters write the last prompt token as well; not in the papers.
        mapper: Whether visual adapters have an influence mapper (VisEdit).
        mapper_target: What heatmaps the mapper is taught with: noise of 3 standard deviations on a
            layer's input ("paper"), of 0.7 behind its norm ("published", as the published code), or
            of a tenth of a standard deviation ("gentle").
        own_units: Whether adapters see every channel in units of its standard deviation over the
            training edits, instead of as it is (the papers).
    """

    layers: dict[str, list[int]]
    d_adapter: int = 1024
    num_heads: int = 8
    init: Init = "identity"
    signal: SignalKind = "site"
    signal_span: SignalSpan = "all"
    signal_window: int = 1
    write_last: bool = False
    mapper: bool = False
    mapper_target: Target = "paper"
    own_units: bool = False

    def build(self, vlm: VLM, seed: int) -> list[Site]:
        """The sites with fresh adapters, in the order in which they write.

        Raises:
            AttribError: A layer that the model does not have, an unknown modality, no layer, or a
                window that shows no position.
        """
        if self.signal_window < 1:
            raise AttribError(f"signal_window: no {self.signal_window}; expected 1 or more")
        pairs = [(layer, m) for m, layers in self.layers.items() for layer in layers]
        check_layers(vlm, self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Of two adapters at one layer, the visual one writes first, as published.
            return [self._site(vlm, layer, m) for layer, m in sorted(pairs, key=_order)]

    def signal_at(
        self, layer: int, hidden: Mapping[int, Float[Tensor, "pos d_model"]], last: int
    ) -> Signal:
        """What the adapter at a layer sees of an edit with these states; see `signal_of`."""
        what = (self.signal, self.signal_span, layer)
        return signal_of(*what, hidden, last, self.signal_window)

    def _site(self, vlm: VLM, layer: int, modality: Any) -> Site:
        visual = modality == "visual"
        adapter = EditAdapter(
            vlm.d_model,
            self.d_adapter,
            self.num_heads,
            self.init,
            self.mapper and visual,
            width_of_signals(self.signal, vlm.d_model, self.signal_window),
        )
        adapter.to(next(vlm.layers[layer].parameters()).device)
        return Site(layer, modality, adapter, self.write_last)


def _order(pair: tuple[int, str]) -> tuple[int, bool]:
    return pair[0], pair[1] == "text"


def check_layers(vlm: VLM, layers: Layers) -> None:
    """Refuse layers that a model does not have, and none at all."""
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
