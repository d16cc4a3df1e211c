"""The published configurations of the papers' backbones, with processors that fit them.

Sizes are those of `config.json` of llava-hf/llava-1.5-7b-hf and Salesforce/blip2-opt-2.7b, and of
MiniGPT-4's parts (Vicuna-7B v0, BLIP-2's EVA ViT-g and Q-Former) as `assemble_minigpt4` joins them.
Tokenizers know the words of the scenes, at the vocabulary sizes and the image tokens of the
originals, so that nothing is downloaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf
from tokenizers import Tokenizer

from attrib.zoo.tokenizer import IMAGE_TOKEN, build_tokenizer

PATCH = 14


@dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone; those of a language model of 7B and its tower by default."""

    width: int = 4096
    mlp: int = 11008
    layers: int = 32
    heads: int = 32
    image_token_id: int = 32000
    vocab: int = 32064
    image: int = 336
    vision_width: int = 1024
    vision_mlp: int = 4096
    vision_layers: int = 24
    vision_heads: int = 16
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_vocab: int = 30522


EVA = {"image": 224, "vision_width": 1408, "vision_mlp": 6144, "vision_layers": 39}
SIZES = {
    "llava-1.5-7b": Sizes(),
    "blip2-opt-2.7b": Sizes(2560, 10240, image_token_id=50265, vocab=50304, **EVA),
    "minigpt4-7b": Sizes(image_token_id=32001, vocab=32002, **EVA),
}
# The same code at a scale for tests.
TINY = Sizes(
    width=64, mlp=160, layers=4, heads=4, image_token_id=1500, vocab=1536, image=4 * PATCH,
    vision_width=32, vision_mlp=64, vision_layers=2, vision_heads=2, qformer_width=32,
    qformer_layers=2, qformer_vocab=8,
)  # fmt: skip
SHAPES = tuple(SIZES)


def official(shape: str, sizes: Sizes | None = None) -> tuple[hf.PreTrainedConfig, Any]:
    """The configuration and the processor of a shape, at other sizes if given."""
    return _BUILDERS[shape](sizes or SIZES[shape])


def _llava(sizes: Sizes) -> tuple[hf.LlavaConfig, hf.LlavaProcessor]:
    tokenizer = sized_tokenizer("llama", sizes)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_vision(sizes), projection_dim=768),
        text_config=_llama(sizes, tokenizer),
        image_token_index=sizes.image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(sizes.image // PATCH) ** 2,
    )
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": sizes.image}, crop_size={"height": sizes.image, "width": sizes.image}
    )
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=IMAGE_TOKEN,
    )  # fmt: skip
    return config, processor


def _blip2(sizes: Sizes, family: str) -> tuple[hf.Blip2Config, hf.Blip2Processor]:
    tokenizer = sized_tokenizer(family, sizes)
    text = _llama(sizes, tokenizer) if family == "llama" else _opt(sizes, tokenizer)
    qformer = hf.Blip2QFormerConfig(
        vocab_size=sizes.qformer_vocab,
        hidden_size=sizes.qformer_width,
        intermediate_size=4 * sizes.qformer_width,
        num_hidden_layers=sizes.qformer_layers,
        num_attention_heads=sizes.qformer_width // 64 or 2,
        cross_attention_frequency=2,
        encoder_hidden_size=sizes.vision_width,
    )
    config = hf.Blip2Config(
        vision_config=hf.Blip2VisionConfig(**_vision(sizes), qkv_bias=True).to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=32,
        image_token_index=sizes.image_token_id,
    )
    config.use_decoder_only_language_model = True
    images = hf.BlipImageProcessorPil(size={"height": sizes.image, "width": sizes.image})
    return config, hf.Blip2Processor(images, tokenizer, num_query_tokens=32)


def _vision(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.vision_width, "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers, "num_attention_heads": sizes.vision_heads,
        "image_size": sizes.image, "patch_size": PATCH,
    }  # fmt: skip


def _text(sizes: Sizes, tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "vocab_size": sizes.vocab,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip


def _llama(sizes: Sizes, tokenizer: hf.PreTrainedTokenizerFast) -> hf.LlamaConfig:
    text = _text(sizes, tokenizer)
    positions = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    return hf.LlamaConfig(
        **text, **positions, intermediate_size=sizes.mlp, tie_word_embeddings=False
    )


def _opt(sizes: Sizes, tokenizer: hf.PreTrainedTokenizerFast) -> hf.OPTConfig:
    text = _text(sizes, tokenizer)
    positions = {"max_position_embeddings": 2048, "word_embed_proj_dim": sizes.width}
    return hf.OPTConfig(**text, **positions, ffn_dim=sizes.mlp, tie_word_embeddings=True)


def sized_tokenizer(family: str, sizes: Sizes) -> hf.PreTrainedTokenizerFast:
    """The tokenizer of the embedded models, with unused tokens up to the image token."""
    tokenizer = build_tokenizer(family)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = document["model"]["vocab"]
    image = next(i for i, (piece, _) in enumerate(vocab) if piece == IMAGE_TOKEN)
    vocab[image][0] = "<unused>"
    unused = range(len(vocab), sizes.image_token_id)
    vocab += [[f"<unused{i}>", -100.0] for i in unused] + [[IMAGE_TOKEN, 0.0]]
    special = {"id": sizes.image_token_id, "content": IMAGE_TOKEN, "special": True}
    others = [one for one in document["added_tokens"] if one["content"] != IMAGE_TOKEN]
    keys = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] = [*others, special | keys]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        bos_token=tokenizer.bos_token, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


_BUILDERS: dict[str, Callable[[Sizes], tuple[hf.PreTrainedConfig, Any]]] = {
    "llava-1.5-7b": _llava,
    "blip2-opt-2.7b": lambda sizes: _blip2(sizes, "opt"),
    "minigpt4-7b": lambda sizes: _blip2(sizes, "llama"),
}
