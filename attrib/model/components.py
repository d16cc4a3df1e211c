"""Find the components of a vision-language model by structure, not by class or attribute names.

A decoder-only image-text-to-text model of transformers has a source of visual features, a decoder
(a stack of equal layers on one residual stream), a final norm, an output embedding, and a token id
that stands for one visual feature.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from attrib.errors import AttribError, SetupError
from attrib.model.devices import execution_device, float_copy
from attrib.model.wrapped import linear_of


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a model.

    Attributes:
        decoder: The module that calls the layers.
        layers: The decoder layers, in order.
        norm: The norm after the last layer.
        output_embedding: From normed hidden state to logits; maybe in a wrapper of peft.
        image_token_id: The input id of a visual token.
        d_model: Width of the residual stream.
        patch_size: Side of the vision tower's patches, in pixels of the processed image. None for
            learned queries (Q-Former, resampler), which each see the whole image.
        needs_pixels: Whether the model's forward requires an image, as in the BLIP family.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    output_embedding: nn.Module
    image_token_id: int
    d_model: int
    patch_size: int | None
    needs_pixels: bool

    @property
    def head(self) -> nn.Linear:
        """The output embedding in use, which can change with the active adapter.

        Raises:
            SetupError: An adapter adds to its output.
        """
        return linear_of(self.output_embedding, "the output embedding")


def find_components(model: PreTrainedModel) -> Components:
    """Find the components of a model.

    Raises:
        SetupError: The model lacks one of them; the message names it.
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
    linear_of(head, f"{name}: the output embedding")
    image_token_id = getattr(model.config, "image_token_id", None)
    if not isinstance(image_token_id, int):
        raise SetupError(
            f"{name}: config.image_token_id is {image_token_id!r}, expected the id of the token "
            "that stands for a visual feature"
        )
    vision = _patch_size(model), _needs_pixels(model)
    return Components(decoder, layers, norms[0], head, image_token_id, d_model, *vision)


def describe(vlm: Any) -> str:
    """A wrapped model in four lines: class, size, dtype and device, visual tokens, processor."""
    size, dtype = vlm.components.patch_size, str(vlm.dtype).removeprefix("torch.")
    visual = f"patches of {size} px" if size else "learned queries"
    return (
        f"VLM {vlm.name!r} ({type(vlm.model).__name__})\n"
        f"  {vlm.num_layers} layers, d_model {vlm.d_model}, "
        f"{vlm.model.num_parameters():,} parameters, {dtype} on {vlm.device}\n"
        f"  visual tokens: {visual}, token id {vlm.components.image_token_id}\n"
        f"  processor: {type(vlm.processor).__name__ if vlm.processor else None}"
    )


def refuse_encoder_decoder(config: PreTrainedConfig, name: str) -> None:
    """Raise SetupError if the language model has a separate text encoder."""
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


def _patch_size(model: PreTrainedModel) -> int | None:
    names = " ".join(name for name, _ in model.named_parameters())
    if "query_tokens" in names or "latents" in names:
        return None
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def _needs_pixels(model: PreTrainedModel) -> bool:
    pixels = inspect.signature(type(model).forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """The final norm with fixed statistics: a linear map of writes to the residual stream.

    If `h` is the sum of writes, `norm(h) == sum(frozen(write)) + frozen.constant`. The constant is
    the bias of a LayerNorm, which belongs to no write.

    Attributes:
        gain: Weight of the norm divided by the scale of each example.
        constant: Bias of the norm; zeros for an RMSNorm.
        centred: Whether the norm subtracts the mean over d_model.
    """

    gain: Float[Tensor, "batch d_model"]
    constant: Float[Tensor, " d_model"]
    centred: bool

    def __call__(
        self, write: Float[Tensor, "batch *between d_model"]
    ) -> Float[Tensor, "batch *between d_model"]:
        """Return the share of `write` in the normed state, in float32, on the norm's device."""
        write = write.float().to(self.gain.device)
        if self.centred:
            write = write - write.mean(-1, keepdim=True)
        return write * self.gain.reshape(len(write), *[1] * (write.ndim - 2), -1)


def freeze_norm(norm: nn.Module, h: Float[Tensor, "batch d_model"]) -> FrozenNorm:
    """Return `norm` as a linear map with its statistics at `h`, in float32.

    Raises:
        AttribError: The norm is neither an RMSNorm nor a LayerNorm.
    """
    h = h.float().to(execution_device(norm))
    weight, bias, centred = probe_norm(norm, h[0])
    normed = float_copy(norm)(h)
    direction = (h - h.mean(-1, keepdim=True) if centred else h) * weight
    size = direction.square().sum(-1, keepdim=True)
    inverse_scale = ((normed - bias) * direction).sum(-1, keepdim=True) / size
    frozen = FrozenNorm(weight * inverse_scale, bias, centred)
    slack = 1e-4 * float(normed.abs().max())
    if not torch.allclose(frozen(h) + bias, normed, rtol=1e-4, atol=slack):
        raise AttribError(
            f"{type(norm).__name__} is neither an RMSNorm nor a LayerNorm; use norm='none'"
        )
    return frozen


@torch.no_grad()
def probe_norm(
    norm: nn.Module, like: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"], bool]:
    """Return weight and bias of a norm, and whether it subtracts the mean, in float32.

    They are read from the outputs for probe vectors, so RMSNorm, LayerNorm and norms that store
    `weight - 1` need no list of classes.

    Args:
        norm: The norm.
        like: A vector whose size the probes take.
    """
    sign = torch.ones_like(like, dtype=torch.float32, device=execution_device(norm))
    sign[1::2] = -1  # mean 0 and root mean square 1, so norm(sign) is weight * sign + bias
    big = 1e3  # makes the epsilon of the norm negligible
    probes = torch.stack([sign, -sign, sign + 0.5]) * big
    plus, minus, shifted = float_copy(norm)(probes)
    centred = torch.allclose(shifted, plus, rtol=1e-3, atol=1e-3)
    return (plus - minus) / 2 * sign, (plus + minus) / 2, centred
