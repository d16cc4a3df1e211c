"""Growing a backbone to twice its depth without changing what it computes.

A small model that learns with all its layers answers in the lowest three and leaves the others
with nothing to do. So the first lessons are taught to a model of half the depth, and then a fresh
layer is put below each of its layers. A fresh layer writes nothing at first (its output
projections are zero), so the model's function stays as it was, and what it does is spread over
the whole depth; the lessons that follow train all layers.
"""

from typing import Any

import torch
from torch import nn

from attrib.zoo.models import Backbone, build, language_model

OUTPUTS = ("o_proj", "down_proj", "out_proj", "fc2")  # what writes to the residual stream


@torch.no_grad()
def grow(small: Backbone, name: str, seed: int) -> Backbone:
    """The backbone `name` at full depth, computing what `small` (half as deep) computes."""
    grown, _ = build(name, seed)
    shallow = _layers(small)
    in_layers = {id(p) for p in shallow.state_dict(keep_vars=True).values()}
    rest = {k: v for k, v in small.state_dict(keep_vars=True).items() if id(v) not in in_layers}
    grown.load_state_dict(rest, strict=False)  # all but the decoder layers
    for i, layer in enumerate(_layers(grown)):
        if i % 2:
            layer.load_state_dict(shallow[i // 2].state_dict())
            continue
        for child, module in layer.named_modules():
            if child.split(".")[-1] in OUTPUTS:
                for p in module.parameters():
                    p.zero_()
    return grown


def _layers(model: Backbone) -> nn.ModuleList:
    decoder: Any = language_model(model)
    return decoder.decoder.layers if hasattr(decoder, "decoder") else decoder.layers
