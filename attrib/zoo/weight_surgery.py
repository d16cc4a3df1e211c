"""Changes of a backbone's weights between training stages: depth, language model, outlier channel.

Depth growth. A deep model learns to read the image in a quarter of the steps that half the depth
takes, but answers in its lowest three layers and leaves the others idle. After the first stage only
the lower half is therefore kept and trained. Then every layer is duplicated, each copy with half of
the original's output, like an ODE solver with half the step size: no layer is idle, and training
removes the small difference.

Outlier channel. In large language models a few channels hold most of the variance of hidden states,
with nearly the same value at every token ("rogue dimensions": Timkey & van Schijndel, 2021;
"massive activations": Sun et al., 2024), and so dominate noise measured in standard deviations of
the states. A small model without such a channel is robust to noise of one standard deviation: its
few features use 128 dimensions redundantly. So all words and visual tokens get the same large value
in one channel, and every norm ignores it and compensates for the larger scale.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from attrib.data.scenes import Scene, render
from attrib.forward.hooks import read
from attrib.forward.replay import capture
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.zoo import (
    Backbone,
    build,
    decoder_layers,
    language_model,
    last_projection,
    output_embedding,
)

OUTPUTS = ("o_proj", "down_proj", "out_proj", "fc2")  # modules that write to the residual stream
CHANNEL = 0
SIZE = 64.0  # of the channel; what layers 0 to 3 hold is then a third to a half of a state's norm


@torch.no_grad()
def keep_lower_half(deep: Backbone, name: str, seed: int) -> Backbone:
    """The backbone `name` with the lower half of the layers of `deep`, and all its other parts."""
    lower, _ = build(name, seed, len(decoder_layers(deep)) // 2)
    _copy_all_but_layers(deep, lower)
    for ours, theirs in zip(decoder_layers(lower), decoder_layers(deep), strict=False):
        ours.load_state_dict(theirs.state_dict())
    return lower


@torch.no_grad()
def grow_depth(small: Backbone, name: str, seed: int) -> Backbone:
    """The backbone `name` at twice the depth: layers 2i and 2i+1 write half of layer i."""
    shallow = decoder_layers(small)
    grown, _ = build(name, seed, 2 * len(shallow))
    _copy_all_but_layers(small, grown)
    for i, layer in enumerate(decoder_layers(grown)):
        layer.load_state_dict(shallow[i // 2].state_dict())
        for child, module in layer.named_modules():
            if child.split(".")[-1] in OUTPUTS:
                for p in module.parameters():
                    p.mul_(0.5)
    return grown


def copy_language_model(folder: Path, to: Backbone) -> None:
    """Copy the language model of a checkpoint (LLaVA and MiniGPT-4 share Vicuna the same way)."""
    source: Any = AutoModelForImageTextToText.from_pretrained(folder)
    language_model(to).load_state_dict(language_model(source).state_dict())
    output_embedding(to).load_state_dict(output_embedding(source).state_dict())


@torch.no_grad()
def add_outlier_channel(
    model: Backbone, processor: Any, scenes: Sequence[Scene], prompts: Sequence[str]
) -> None:
    """Give a trained model the channel, in place; its outputs hardly change.

    A norm divides by the scale of a state. With the channel that scale is nearly the same for all
    states, so each gain is multiplied by the mean growth of the scale.

    Args:
        model: a backbone at full depth.
        processor: its processor.
        scenes: images to measure the scale of states with.
        prompts: a question about each.
    """
    vlm = VLM(model.eval(), processor)
    batch = vlm.encode([render(scene, 0)[0] for scene in scenes], prompts)
    residual = _residual_stream(vlm, batch)
    for i, layer in enumerate(decoder_layers(model)):
        before, after = _norms(layer)
        _ignore_channel(before, residual[i])
        # The input of the second norm lies between the two.
        _ignore_channel(after, torch.cat([residual[i], residual[i + 1]]))
    decoder: Any = language_model(model)
    final = decoder.decoder.final_layer_norm if hasattr(decoder, "decoder") else decoder.norm
    _ignore_channel(final, residual[-1])
    embedding: Any = model.get_input_embeddings()
    embedding.weight[:, CHANNEL] += SIZE
    projection: Any = last_projection(model)
    projection.bias[CHANNEL] += SIZE


def _copy_all_but_layers(source: Backbone, to: Backbone) -> None:
    in_layers = {id(p) for p in decoder_layers(source).state_dict(keep_vars=True).values()}
    rest = {k: v for k, v in source.state_dict(keep_vars=True).items() if id(v) not in in_layers}
    to.load_state_dict(rest, strict=False)


def _norms(layer: Any) -> tuple[nn.Module, nn.Module]:
    if hasattr(layer, "input_layernorm"):
        return layer.input_layernorm, layer.post_attention_layernorm
    return layer.self_attn_layer_norm, layer.final_layer_norm


def _residual_stream(vlm: VLM, batch: Batch) -> list[Float[Tensor, "token d_model"]]:
    """The input of layer 0 and the output of each layer, at all real positions."""
    with capture(vlm) as captured, read(vlm) as hidden:
        vlm.logits(batch)
    real = batch.inputs["attention_mask"].bool()
    return [captured.embed[real], *(hidden[i][real] for i in range(vlm.num_layers))]


def _ignore_channel(norm: Any, states: Float[Tensor, "token d_model"]) -> None:
    centred = isinstance(norm, nn.LayerNorm)
    with_channel = states.clone()
    with_channel[:, CHANNEL] += SIZE
    grown = 1 / _scale(with_channel, centred)
    norm.weight.mul_((1 / _scale(states, centred)).mean() / grown.mean())
    norm.weight[CHANNEL] = 0
    if centred:  # the mean that the norm subtracts has grown by SIZE / d_model
        norm.bias.add_(norm.weight * SIZE / states.shape[1] * grown.mean())


def _scale(states: Tensor, centred: bool) -> Float[Tensor, " token"]:
    if centred:
        states = states - states.mean(-1, keepdim=True)
    return states.square().mean(-1).sqrt()
