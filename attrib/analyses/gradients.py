"""Gradient times input: the plain rival of a heatmap (Simonyan et al. 2013; Shrikumar et al. 2016).

One backward pass gives all layers at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.visual_tokens import VisualTokens
from attrib.forward.hooks import gather_positions, read
from attrib.forward.replay import capture
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


def gradient_times_input(vlm: VLM, batch: Batch) -> Float[Tensor, "batch layer visual"]:
    """How far a layer's input at a visual token speaks for the next token the model predicts.

    The gradient of that token's logit at the last prompt position, times the state, summed over
    channels: to first order, what would be lost of the logit if the state were scaled to zero. NaN
    past an example's visual tokens.

    Raises:
        AttribError: no image in the batch.
    """
    tokens = VisualTokens.of(batch)
    with torch.enable_grad(), _differentiable(vlm), capture(vlm) as captured, read(vlm) as hidden:
        total = gather_positions(vlm.logits(batch), tokens.last).amax(-1).sum()
    outputs = [hidden[layer] for layer in range(vlm.num_layers - 1)]
    inputs = [captured.embed, *outputs]
    gradients = torch.autograd.grad(total, inputs)
    layers = []
    for layer, (states, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        # What is written between two layers (Qwen3-VL) belongs to the input of the second.
        entering = captured.inputs[layer][1] if layer in captured.inputs else states
        product = (entering.detach() * gradient).sum(-1, keepdim=True)
        layers.append(tokens.gather(product)[..., 0].to(tokens.at.device))
    values = torch.stack(layers, 1)
    return values.masked_fill(~tokens.real[:, None], torch.nan)


@contextmanager
def _differentiable(vlm: VLM) -> Iterator[None]:
    """Let the forward pass build a graph from the embeddings on, in a model that is frozen."""
    weight = vlm.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(before)
