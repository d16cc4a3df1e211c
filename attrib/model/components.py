"""Find the parts of a vision-language model by their structure, not by their names.

A decoder-only image-text-to-text model of transformers is: something that makes visual features, a
decoder (a stack of equal layers on one residual stream), a final norm, an output embedding, and a
token id that stands for one visual feature. This file finds them in any model, or says what is
missing.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from attrib.errors import AttribError, SetupError


@dataclass(frozen=True, eq=False)
class Components:
    """The named parts of a model.

    Attributes:
        decoder: The module that runs the layers.
        layers: The decoder layers, in order.
        norm: The norm after the last layer.
        head: The output embedding: normed hidden state to logits.
        image_token_id: The input id that stands for one visual token.
        d_model: Width of the residual stream.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Linear
    image_token_id: int
    d_model: int


def find_components(model: PreTrainedModel) -> Components:
    """The parts of a model.

    Raises:
        SetupError: The model lacks one of them; the message says which.
    """
    name = type(model).__name__
    refuse_encoder_decoder(model.config, name)
    decoder, layers = _find_decoder(model)
    d_model = model.config.get_text_config().hidden_size
    norms = [
        child
        for child in decoder.children()
        if (weights := list(child.parameters())) and all(w.shape == (d_model,) for w in weights)
    ]
    if len(norms) != 1:
        raise SetupError(
            f"{name}: {len(norms)} candidates for the final norm of the decoder, expected 1"
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise SetupError(f"{name} has no linear output embedding; load a model that generates text")
    image_token_id = getattr(model.config, "image_token_id", None)
    if not isinstance(image_token_id, int):
        raise SetupError(
            f"{name}: config.image_token_id is {image_token_id!r}, expected the id of the token "
            "that stands for a visual feature"
        )
    return Components(decoder, layers, norms[0], head, image_token_id, d_model)


def refuse_encoder_decoder(config: PreTrainedConfig, name: str) -> None:
    """Raise SetupError if the language model reads its prompt in an encoder."""
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise SetupError(
            f"{name} is an encoder-decoder; models with one decoder stack are supported"
        )


def _find_decoder(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    module: Any = model
    while not isinstance(layers := getattr(module, "layers", None), nn.ModuleList):
        inner = module.get_decoder() if hasattr(module, "get_decoder") else module
        if inner is module or inner is None:
            raise SetupError(f"{type(model).__name__}: no stack of decoder layers found")
        module = inner
    return module, layers


def patch_size(model: PreTrainedModel) -> int | None:
    """Side of the patches that visual tokens are made of, in pixels of the processed image.

    None if there is no such thing: learned queries (Q-Former, resampler) each look at the whole
    image.
    """
    names = " ".join(name for name, _ in model.named_parameters())
    if "query_tokens" in names or "latents" in names:
        return None
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def needs_pixels(model: PreTrainedModel) -> bool:
    """Whether the model's forward insists on an image (the BLIPs do)."""
    pixels = inspect.signature(type(model).forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """The final norm with its statistics held fixed: a linear map of writes to the residual stream.

    If `h` is the sum of writes, `norm(h) == sum(frozen(write)) + frozen.constant`: every write has
    its share, and what belongs to none of them (the bias of a LayerNorm) is the constant.

    Attributes:
        gain: Weight of the norm times the inverse scale of each example.
        constant: Bias of the norm (zeros for an RMSNorm).
        centred: Whether the norm subtracts the mean over d_model first.
    """

    gain: Float[Tensor, "batch d_model"]
    constant: Float[Tensor, " d_model"]
    centred: bool

    def __call__(
        self, write: Float[Tensor, "batch *between d_model"]
    ) -> Float[Tensor, "batch *between d_model"]:
        """The share of `write` in the normed state, in float32."""
        write = write.float()
        if self.centred:
            write = write - write.mean(-1, keepdim=True)
        return write * self.gain.reshape(len(write), *[1] * (write.ndim - 2), -1)


def freeze_norm(norm: nn.Module, h: Float[Tensor, "batch d_model"]) -> FrozenNorm:
    """`norm` as a linear map, with the mean and scale it has at `h`.

    RMSNorm, LayerNorm and norms that store `weight - 1` are told apart by what they do to probe
    vectors, so that no list of norm classes is needed. Everything is computed in float32.

    Raises:
        AttribError: The norm is of neither kind.
    """
    norm, h = copy.deepcopy(norm).float(), h.float()
    sign = torch.ones_like(h[0])
    sign[1::2] = -1  # +-1: mean 0, root mean square 1, so that the norm of `sign` shows its gain
    big = 1e3  # makes the norm's epsilon vanish in float32
    with torch.no_grad():
        plus, minus, shifted = norm(torch.stack([sign, -sign, sign + 0.5]) * big)
    gain, bias = (plus - minus) / 2 * sign, (plus + minus) / 2
    centred = torch.allclose(shifted, plus, rtol=1e-3, atol=1e-3)
    centre = h - h.mean(-1, keepdim=True) if centred else h
    normed = norm(h)
    direction = centre * gain
    size = direction.square().sum(-1, keepdim=True)
    scale = ((normed - bias) * direction).sum(-1, keepdim=True) / size
    frozen = FrozenNorm(gain * scale, bias, centred)
    slack = 1e-4 * float(normed.abs().max())
    if not torch.allclose(frozen(h) + bias, normed, rtol=1e-4, atol=slack):
        raise AttribError(
            f"{type(norm).__name__} is neither an RMSNorm nor a LayerNorm; use norm='none'"
        )
    return frozen
