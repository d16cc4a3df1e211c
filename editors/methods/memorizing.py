"""What is kept of an edit: one forward pass over its image, prompt and target."""

from collections.abc import Sequence

import torch

from attrib.data.samples import EditRequest
from attrib.forward.hooks import read
from attrib.forward.replay import capture
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED, EditSignal
from editors.adapters.sites import AdapterConfig, Gate, MemoryEntry, Site
from editors.base import encode_requests


@torch.no_grad()
def encode_edit(
    vlm: VLM,
    adapters: AdapterConfig,
    sites: Sequence[Site],
    gate: Gate | None,
    request: EditRequest,
) -> MemoryEntry:
    """What is kept of an edit: its states at the sites, and what the gate compares with."""
    batch = encode_requests(vlm, [request])
    layers = {site.layer for site in sites} | set(() if gate is None else gate.layers)
    with read(vlm, sorted(layers)) as hidden, capture(vlm) as captured:
        vlm.logits(batch)
    hidden[EMBED] = captured.embed
    of_edit = {layer: h[0] for layer, h in hidden.items()}
    last = int(batch["last"][0].int().argmax())
    signals = {}
    for site in sites:
        signal = adapters.signal_at(site.layer, of_edit, last)
        signals[site.key] = EditSignal(signal.states.clone(), signal.last.clone())
    kept = {} if gate is None else gate.states({i: hidden[i] for i in gate.layers}, batch)[0]
    return MemoryEntry(request, signals, kept)
