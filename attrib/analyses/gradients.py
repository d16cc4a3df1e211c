"""Gradient times input, a baseline for heatmaps (Simonyan et al. 2013; Shrikumar et al. 2016)."""

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
    """Gradient of the predicted token's logit times each layer's input at a visual token.

    The logit is that at the last prompt position; the product is summed over channels. To first
    order it is the drop of the logit if the state were scaled to zero. One backward pass gives all
    layers. NaN past an example's visual tokens.

    Raises:
        AttribError: No image in the batch.
    """
    tokens = VisualTokens.of(batch)
    with torch.enable_grad(), _differentiable(vlm), capture(vlm) as captured, read(vlm) as hidden:
        total = gather_positions(vlm.logits(batch), tokens.last).amax(-1).sum()
    inputs = [captured.embed, *(hidden[layer] for layer in range(vlm.num_layers - 1))]
    gradients = torch.autograd.grad(total, inputs)
    layers = []
    for layer, (states, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        # Writes between two layers (Qwen3-VL) belong to the input of the second.
        entering = captured.inputs[layer][1] if layer in captured.inputs else states
        product = (entering.detach() * gradient).sum(-1, keepdim=True)
        layers.append(tokens.gather(product)[..., 0].to(tokens.at.device))
    values = torch.stack(layers, 1)
    return values.masked_fill(~tokens.real[:, None], torch.nan)


@contextmanager
def _differentiable(vlm: VLM) -> Iterator[None]:
    """Build an autograd graph from the embeddings on, in a frozen model."""
    weight = vlm.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(before)
