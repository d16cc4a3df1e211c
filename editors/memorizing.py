"""What is kept of an edit: one forward pass over its image, prompt and target."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.hooks import capture, read
from attrib.vlm import VLM
from editors.placement import Adapters, Signal, signal_start
from editors.sites import Gate, Memory, Site


@torch.no_grad()
def memorize(
    vlm: VLM, adapters: Adapters, sites: Sequence[Site], gate: Gate | None, request: EditRequest
) -> Memory:
    """What is kept of an edit: its states at the sites, and what the gate compares with."""
    batch = vlm.encode([request.image], [request.prompt], [request.target])
    layers = {site.layer for site in sites} | set(() if gate is None else gate.layers)
    with read(vlm, sorted(layers)) as hidden, capture(vlm) as captured:
        vlm.logits(batch)
    last = int(batch["last"][0].int().argmax())
    start = signal_start(adapters.signal_span, last)
    signals = {
        site.key: signal_at(adapters.signal, site.layer, hidden, captured.embed)[0, start:]
        for site in sites
    }
    kept = {} if gate is None else gate.states({i: hidden[i] for i in gate.layers}, batch)[0]
    return Memory(request, {k: s.clone() for k, s in signals.items()}, last - start, kept)


def signal_at(
    signal: Signal, layer: int, hidden: Mapping[int, Tensor], embed: Tensor
) -> Float[Tensor, "batch pos d_model"]:
    """What an adapter attends to of an edit."""
    if signal == "none":
        return torch.zeros_like(embed)
    return embed if signal == "embed" else hidden[layer]
