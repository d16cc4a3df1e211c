"""A channel that says nothing and is large everywhere, as hidden states of large models have one.

In large language models a few channels hold most of the variance of hidden states, with nearly the
same value at every token ("rogue dimensions": Timkey & van Schijndel, 2021; "massive activations":
Sun et al., 2024). Noise measured in standard deviations of the states is measured against them. A
small model without such a channel shrugs off noise of one standard deviation: its few features fill
128 dimensions, ten times more than they need.

The channel is planted by hand: all words and visual tokens get the same large value in it, and
every norm stops looking at it and makes up for the larger scale.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.data.scenes.scene import Scene, render
from attrib.forward.hooks import capture, read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.zoo.models import Backbone, decoder_layers, language_model, last_projection

CHANNEL = 0
SIZE = 64.0
"""Its value: beside it, what layers 0 to 3 hold is a third to a half of a state's norm."""


@torch.no_grad()
def add_outlier_channel(
    model: Backbone, processor: Any, scenes: Sequence[Scene], prompts: Sequence[str]
) -> None:
    """Give a trained model the channel, in place; what it computes changes little by it.

    A norm divides by the scale of a state. With the channel that scale is nearly the same for all
    states, so each gain is multiplied by how much the scale has grown on average.

    Args:
        model: a backbone at full depth.
        processor: its processor.
        scenes: pictures to measure the scale of states with.
        prompts: a question about each.
    """
    vlm = VLM(model.eval(), processor)
    batch = vlm.encode([render(scene, 0)[0] for scene in scenes], prompts)
    streams = _streams(vlm, batch)
    for i, layer in enumerate(decoder_layers(model)):
        before, after = _norms(layer)
        _ignore_channel(before, streams[i])
        _ignore_channel(after, torch.cat([streams[i], streams[i + 1]]))  # what is between them
    decoder: Any = language_model(model)
    final = decoder.decoder.final_layer_norm if hasattr(decoder, "decoder") else decoder.norm
    _ignore_channel(final, streams[-1])
    embedding: Any = model.get_input_embeddings()
    embedding.weight[:, CHANNEL] += SIZE
    projection: Any = last_projection(model)
    projection.bias[CHANNEL] += SIZE


def _norms(layer: Any) -> tuple[nn.Module, nn.Module]:
    if hasattr(layer, "input_layernorm"):
        return layer.input_layernorm, layer.post_attention_layernorm
    return layer.self_attn_layer_norm, layer.final_layer_norm


def _streams(vlm: VLM, batch: Batch) -> list[Float[Tensor, "token d_model"]]:
    """What enters layer 0, and what each layer gives, at all real positions."""
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
    if centred:  # the mean over channels that is taken off has grown by SIZE / d_model
        norm.bias.add_(norm.weight * SIZE / states.shape[1] * grown.mean())


def _scale(states: Tensor, centred: bool) -> Float[Tensor, " token"]:
    if centred:
        states = states - states.mean(-1, keepdim=True)
    return states.square().mean(-1).sqrt()
