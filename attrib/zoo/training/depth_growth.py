"""Changing the depth of a backbone during training, so that what it does is spread over it.

A deep model finds the picture soon (here in a quarter of the steps that half the depth takes), but
answers in its lowest three layers and leaves the others with nothing to do. So once the first
lesson is learned only the lower half is kept. The lessons that follow are taught to that, and then
every layer is put in twice, each with half of what it wrote to the residual stream: like a
differential equation solved in steps of half the size. No layer is idle, and the last lessons mend
the small difference.
"""

import torch

from attrib.zoo.models import NUM_LAYERS, Backbone, build, decoder_layers

OUTPUTS = ("o_proj", "down_proj", "out_proj", "fc2")  # what writes to the residual stream


@torch.no_grad()
def keep_lower_half(deep: Backbone, name: str, seed: int) -> Backbone:
    """The backbone `name` with the lower half of the layers of `deep`, and all its other parts."""
    lower, _ = build(name, seed, NUM_LAYERS // 2)
    _copy_all_but_layers(deep, lower)
    for ours, theirs in zip(decoder_layers(lower), decoder_layers(deep), strict=False):
        ours.load_state_dict(theirs.state_dict())
    return lower


@torch.no_grad()
def grow_depth(small: Backbone, name: str, seed: int) -> Backbone:
    """The backbone `name` at full depth: layers 2i and 2i+1 each do half of layer i of `small`."""
    grown, _ = build(name, seed)
    _copy_all_but_layers(small, grown)
    shallow = decoder_layers(small)
    for i, layer in enumerate(decoder_layers(grown)):
        layer.load_state_dict(shallow[i // 2].state_dict())
        for child, module in layer.named_modules():
            if child.split(".")[-1] in OUTPUTS:
                for p in module.parameters():
                    p.mul_(0.5)
    return grown


def _copy_all_but_layers(source: Backbone, to: Backbone) -> None:
    in_layers = {id(p) for p in decoder_layers(source).state_dict(keep_vars=True).values()}
    rest = {k: v for k, v in source.state_dict(keep_vars=True).items() if id(v) not in in_layers}
    to.load_state_dict(rest, strict=False)
