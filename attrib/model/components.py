"""Find the components of a vision-language model by structure, not by class or attribute names.

A decoder-only image-text-to-text model of transformers has a source of visual features, a decoder
(a stack of equal layers on one residual stream), a final norm, an output embedding, and a token id
that stands for one visual feature.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from attrib.errors import SetupError
from attrib.model.adapters import linear_of


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
    _refuse_text_only(model, name)
    d_model = _width(model.config, name)
    decoder, layers = _find_decoder(model, d_model)
    _refuse_second_sequence(model, decoder)
    _refuse_cross_attention(decoder, name)
    image_token_id = _image_token_id(model.config, name)
    norms = [
        child
        for child in decoder.children()
        if (weights := list(child.parameters())) and all(w.shape == (d_model,) for w in weights)
    ]
    if len(norms) != 1:
        parts = ", ".join(key for key, _ in decoder.named_children())
        raise SetupError(
            f"{name}: {len(norms)} of the parts of its decoder ({parts}) are a norm of width "
            f"{d_model}, expected one, which its output embedding reads; decoders that mix several "
            "streams or the outputs of several layers are not supported"
        )
    head = _find_head(model, d_model)
    linear_of(head, f"{name}: the output embedding")
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


def _refuse_text_only(model: PreTrainedModel, name: str) -> None:
    takes = inspect.signature(type(model).forward).parameters
    if model.config.get_text_config() is model.config and not any("pixel" in key for key in takes):
        raise SetupError(f"{name} reads text only: its forward takes no pictures")


def _width(config: PreTrainedConfig, name: str) -> int:
    """Width of the residual stream."""
    d_model = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(d_model, int):
        raise SetupError(
            f"{name}: its config has no hidden_size of a text decoder; models that continue text "
            "are supported"
        )
    return d_model


def _image_token_id(config: PreTrainedConfig, name: str) -> int:
    token = getattr(config, "image_token_id", None)
    if not isinstance(token, int):
        raise SetupError(
            f"{name}: its config has no image_token_id, the token that stands for a visual "
            "feature; models that mark the places of pictures by a token are supported"
        )
    return token


def _refuse_second_sequence(model: PreTrainedModel, decoder: nn.Module) -> None:
    for module in model.modules():
        inner = module is not model and any(part is decoder for part in module.modules())
        if inner and "decoder_input_ids" in inspect.signature(type(module).forward).parameters:
            raise SetupError(
                f"{type(model).__name__} writes into a second sequence (decoder_input_ids), as "
                "encoder-decoders and diffusion decoders do; models that continue their prompt "
                "token by token are supported"
            )


def _refuse_cross_attention(decoder: nn.Module, name: str) -> None:
    for path, module in decoder.named_modules():
        if re.search(r"cross_?att", f"{path.rpartition('.')[2]} {type(module).__name__}", re.I):
            raise SetupError(
                f"{name} reads pictures by cross-attention ({path}), not as tokens of its prompt; "
                "models whose decoder reads visual tokens are supported"
            )


def check_stream(states: Sequence[Tensor], parts: Components, name: str) -> None:
    """Refuse a model whose layers do not each write once to one residual stream.

    Raises:
        SetupError: The message says what was seen instead.
    """
    num, calls = len(parts.layers), len(states)
    if calls != num:
        raise SetupError(
            f"{name}: {calls} of its {num} decoder layers run on a text; models that run each "
            "layer once are supported"
        )
    for i, state in enumerate(states):
        if state.ndim != 3 or state.shape[-1] != parts.d_model:
            raise SetupError(
                f"{name}: layer {i} returns {tuple(state.shape)}, several residual streams, of "
                "which no single one is the state of a position; models with one stream of "
                "(batch, positions, d_model) are supported"
            )


def _find_decoder(model: PreTrainedModel, d_model: int) -> tuple[nn.Module, nn.ModuleList]:
    module: Any = model
    while not isinstance(layers := getattr(module, "layers", None), nn.ModuleList):
        inner = module.get_decoder() if hasattr(module, "get_decoder") else module
        if inner is module or inner is None:
            return _find_stack(module, d_model, type(model).__name__)
        module = inner
    return module, layers


def _find_stack(root: nn.Module, d_model: int, name: str) -> tuple[nn.Module, nn.ModuleList]:
    """The longest stack of layers below `root` whose norms have the width of the stream.

    One beside an embedding of tokens comes first: a vision tower may be as wide.
    """
    stacks = [
        (_embeds_tokens(parent, d_model), len(child), parent, child)
        for parent in root.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) and _has_width(child, d_model)
    ]
    if not stacks:
        raise SetupError(
            f"{name}: no stack of decoder layers of width {d_model} found in {type(root).__name__}"
        )
    _, _, decoder, layers = max(stacks, key=lambda found: found[:2])
    return decoder, layers


def _has_width(layers: nn.ModuleList, d_model: int) -> bool:
    return all(any(w.shape == (d_model,) for w in layer.parameters()) for layer in layers)


def _embeds_tokens(module: nn.Module, d_model: int) -> bool:
    children = module.children()
    return any(isinstance(c, nn.Embedding) and c.embedding_dim == d_model for c in children)


def _find_head(model: PreTrainedModel, d_model: int) -> Any:
    """The output embedding: as the model names it, or the linear map from stream to vocabulary."""
    if (head := model.get_output_embeddings()) is not None:
        return head
    shape = (model.config.get_text_config().vocab_size, d_model)
    for module in model.modules():
        if isinstance(module, nn.Linear) and (module.out_features, module.in_features) == shape:
            return module
    return None


def _patch_size(model: PreTrainedModel) -> int | None:
    names = " ".join(name for name, _ in model.named_parameters())
    if "query_tokens" in names or "latents" in names:
        return None
    size = getattr(getattr(model.config, "vision_config", None), "patch_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def _needs_pixels(model: PreTrainedModel) -> bool:
    pixels = inspect.signature(type(model).forward).parameters.get("pixel_values")
    return pixels is not None and pixels.default is pixels.empty
