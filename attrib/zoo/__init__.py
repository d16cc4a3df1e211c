"""The embedded backbones: the papers' three model families, small, in their real classes.

`tiny-llava`     CLIP vision tower, MLP projector, Llama       (LLaVA-1.5)
`tiny-blip2`     ViT, Q-Former, linear projection, OPT         (BLIP-2 OPT)
`tiny-minigpt4`  ViT, Q-Former, linear projection, Llama       (MiniGPT-4)
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from attrib.data.scenes import GRID, IMAGE_SIZE
from attrib.zoo.tokenizer import IMAGE_TOKEN, build_tokenizer

Backbone = LlavaForConditionalGeneration | Blip2ForConditionalGeneration

D_MODEL = 128
NUM_LAYERS = 10
NUM_HEADS = 4
PATCH_SIZE = 16  # a grid cell has 2 x 2 patches: no patch shows two objects
NUM_QUERIES = 12  # one for each cell of the grid, and three spare ones
MAX_POSITIONS = 1024
VISION_WIDTH = 96
_VISION: dict[str, Any] = {
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
_HALF = [0.5, 0.5, 0.5]


def _text_config(
    family: str, tokenizer: PreTrainedTokenizerFast, num_layers: int
) -> LlamaConfig | OPTConfig:
    shared: dict[str, Any] = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": num_layers,
        "num_attention_heads": NUM_HEADS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if family == "llama":
        return LlamaConfig(**shared, intermediate_size=320, tie_word_embeddings=False)
    return OPTConfig(
        **shared, ffn_dim=448, word_embed_proj_dim=D_MODEL, dropout=0.0, tie_word_embeddings=False
    )


def _image_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.get_vocab()[IMAGE_TOKEN]


def _build_llava(num_layers: int) -> tuple[Backbone, LlavaProcessor]:
    tokenizer = build_tokenizer("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=_text_config("llama", tokenizer, num_layers),
        image_token_index=_image_id(tokenizer),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE, image_mean=_HALF, image_std=_HALF
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the model drops
        image_token=IMAGE_TOKEN,
    )
    return LlavaForConditionalGeneration(config), processor


def _build_blip2(num_layers: int, family: str) -> tuple[Backbone, Blip2Processor]:
    tokenizer = build_tokenizer(family)
    config = Blip2Config(
        # The default range of 1e-10 is for loading weights, not for training.
        vision_config=Blip2VisionConfig(**_VISION, initializer_range=0.06).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=32,  # the Q-Former's text side is not used
            hidden_size=VISION_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            cross_attention_frequency=1,
            encoder_hidden_size=VISION_WIDTH,
            initializer_range=0.1,  # 1/sqrt(width): with 0.02 its attention starts uniform
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).to_dict(),
        text_config=_text_config(family, tokenizer, num_layers).to_dict(),
        num_query_tokens=NUM_QUERIES,
        image_token_index=_image_id(tokenizer),
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = BlipImageProcessorPil(size=side, image_mean=_HALF, image_std=_HALF)
    processor = Blip2Processor(images, tokenizer, num_query_tokens=NUM_QUERIES)
    model = Blip2ForConditionalGeneration(config)
    nn.init.normal_(model.query_tokens, std=1.0)  # equal queries would stay equal
    return model, processor


BUILDERS: dict[str, Callable[[int], tuple[Backbone, Any]]] = {
    "tiny-llava": _build_llava,
    "tiny-blip2": lambda num_layers: _build_blip2(num_layers, "opt"),
    "tiny-minigpt4": lambda num_layers: _build_blip2(num_layers, "llama"),
}


def build(name: str, seed: int, num_layers: int = NUM_LAYERS) -> tuple[Backbone, Any]:
    """A freshly initialised backbone and its processor.

    Word embeddings start at norm 1 (std 1/sqrt(d)), so that visual tokens do not dominate them.
    """
    if name not in BUILDERS:
        raise ValueError(f"no embedded backbone {name!r}; there are: {', '.join(BUILDERS)}")
    torch.manual_seed(seed)
    model, processor = BUILDERS[name](num_layers)
    for p in model.get_input_embeddings().parameters():
        nn.init.normal_(p, std=D_MODEL**-0.5)
    return model, processor


def patches(model: Backbone, pixels: Tensor) -> Float[Tensor, "image patch width"]:
    """The vision tower's output at each patch."""
    return _vision_states(model, pixels)[:, 1:]  # without the class token


def visual_tokens(model: Backbone, pixels: Tensor) -> Float[Tensor, "image token d_model"]:
    """The visual tokens of each image, as the model's own forward pass computes them."""
    parts: Any = model
    if isinstance(model, LlavaForConditionalGeneration):
        return parts.model.multi_modal_projector(patches(model, pixels))
    queries = parts.query_tokens.expand(len(pixels), -1, -1)
    states = _vision_states(model, pixels)
    output = parts.qformer(query_embeds=queries, encoder_hidden_states=states)
    return parts.language_projection(output.last_hidden_state)


def _vision_states(model: Backbone, pixels: Tensor) -> Tensor:
    parts: Any = model
    is_llava = isinstance(model, LlavaForConditionalGeneration)
    tower = parts.model.vision_tower if is_llava else parts.vision_model
    return tower(pixel_values=pixels).last_hidden_state


def language_model(model: Backbone) -> nn.Module:
    """The decoder from input embeddings to the last hidden states (final norm included)."""
    parts: Any = model
    is_llava = isinstance(model, LlavaForConditionalGeneration)
    return parts.model.language_model if is_llava else parts.language_model.model


def decoder_layers(model: Backbone) -> nn.ModuleList:
    """The layers of the language model."""
    decoder: Any = language_model(model)
    return decoder.decoder.layers if hasattr(decoder, "decoder") else decoder.layers


def last_projection(model: Backbone) -> nn.Module:
    """The linear layer that outputs the visual tokens."""
    parts: Any = model
    is_llava = isinstance(model, LlavaForConditionalGeneration)
    return parts.model.multi_modal_projector.linear_2 if is_llava else parts.language_projection


def output_embedding(model: Backbone) -> nn.Module:
    """The layer from the last hidden state to the logits."""
    head = model.get_output_embeddings()
    assert head is not None, "every backbone has an output embedding"
    return head


def vision_parameters(model: Backbone) -> list[nn.Parameter]:
    """The parameters outside the language model: vision tower, Q-Former and connector."""
    language = (language_model(model), output_embedding(model), model.get_input_embeddings())
    ids = {id(p) for part in language for p in part.parameters()}
    return [p for p in model.parameters() if id(p) not in ids]


def cells_of_patches() -> list[int | None]:
    """The grid cell of each patch, row by row."""
    side = IMAGE_SIZE // PATCH_SIZE
    per_cell = side // GRID
    return [row // per_cell * GRID + col // per_cell for row in range(side) for col in range(side)]


def cell_of_token(model: Backbone) -> list[int | None]:
    """The grid cell that each visual token is pre-trained on; None for those without one."""
    if isinstance(model, LlavaForConditionalGeneration):
        return cells_of_patches()
    return [*range(GRID * GRID), *[None] * (NUM_QUERIES - GRID * GRID)]
