"""Gemma: norms after sublayers, sliding windows, attention in both directions over the picture."""

import torch
import transformers as tr
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.model.processor_files import without_video_check
from tests import tiny_models
from tests.architectures.prompts import ByHand, cut, square, words
from tests.architectures.small import model_of, small, tower
from tests.architectures.substitutes import resnet, with_tower
from tests.tiny_models import END, START

KINDS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
NAMES = {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}

AUDIO = {"audio_token": "<global-img>", "boa_token": "<end_of_utterance>", "eoa_token": "</s>"}


def _shieldgemma2():
    text = {"layer_types": KINDS}
    config = small(
        "shieldgemma2", text_config=text, mm_tokens_per_image=4, boi_token_index=START,
        eoi_token_index=END,
    )  # fmt: skip
    images = tr.Gemma3ImageProcessorPil(size=square(28))
    return model_of(config), tr.Gemma3Processor(images, words("<s>", **NAMES), image_seq_length=4)


def _paligemma2():
    """Attention scores are soft-capped, so it attends eagerly, without sdpa."""
    model, processor = tiny_models.build("paligemma")
    text = small("gemma2", attn_logit_softcapping=5.0, final_logit_softcapping=20.0)
    config = model.config.to_dict() | {"text_config": text.to_dict()}
    return model_of(tr.PaliGemmaConfig(**config)), processor


def _gemma4(**variant):
    text = {
        "layer_types": KINDS, "global_head_dim": 16, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": tiny_models.VOCAB,
    } | variant  # fmt: skip
    vision = tower(tr.Gemma4VisionConfig, patch_size=16, position_embedding_size=64)
    config = small("gemma4", text_config=text, vision_config=vision)
    images = tr.Gemma4ImageProcessorPil(max_soft_tokens=70)
    processor = without_video_check(tr.Gemma4Processor)(
        feature_extractor=tr.Gemma4AudioFeatureExtractor(), image_processor=images,
        tokenizer=words("<s>", video="<|video|>", **AUDIO, **NAMES),
        video_processor=BaseVideoProcessor(),
    )  # fmt: skip
    return model_of(config), processor


EXPERTS = {
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def _gemma4_unified():
    text = {"layer_types": KINDS, "global_head_dim": 16}
    vision = tower(
        tr.Gemma4UnifiedVisionConfig, patch_size=7, pooling_kernel_size=2, mm_embed_dim=64,
        mm_posemb_size=16, output_proj_dims=64,
    )  # fmt: skip
    config = small("gemma4_unified", text_config=text, vision_config=vision)

    def inputs(pixels):
        patches, _ = cut(pixels, 14)
        places = torch.cartesian_prod(torch.arange(2), torch.arange(2)).flip(-1)
        flat = patches.flatten(1).unflatten(0, (len(pixels), 4))
        return {"pixel_values": flat, "image_position_ids": places.repeat(len(pixels), 1, 1)}

    marks = {"before": "<start_of_image>", "after": "<end_of_image>"}
    return model_of(config), ByHand(28, 4, inputs, types=True, **marks)


def _gemma3n():
    text = {
        "layer_types": KINDS, "intermediate_size": [128] * 4, "final_logit_softcapping": 20.0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny_models.VOCAB,
        "laurel_rank": 8, "num_kv_shared_layers": 0, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    }  # fmt: skip
    audio = {
        "hidden_size": 32, "vocab_size": 8, "vocab_offset": 450, "input_feat_size": 16,
        "conf_num_attention_heads": 4, "conf_num_hidden_layers": 1,
        "sscp_conv_channel_size": [8, 4],
    }  # fmt: skip
    vision = {"hidden_size": 32, "vocab_size": 8, "vocab_offset": 440}
    config = small(
        "gemma3n", vision_config=vision, text_config=text, audio_config=audio,
        vision_soft_tokens_per_image=4,
        audio_token_id=END + 2, boa_token_id=END + 3, eoa_token_id=END + 3,
    )  # fmt: skip
    model = with_tower(config, tr.Gemma3nVisionConfig, resnet())
    processor = without_video_check(tr.Gemma3nProcessor)(
        feature_extractor=tr.Gemma4AudioFeatureExtractor(), image_seq_length=4,
        image_processor=tr.SiglipImageProcessorPil(size=square(16)),
        tokenizer=words("<s>", **AUDIO, **NAMES),
    )  # fmt: skip
    return model, processor


BUILDERS = {
    "gemma3": tiny_models.BUILDERS["gemma3"],
    "shieldgemma2": _shieldgemma2,
    "paligemma": tiny_models.BUILDERS["paligemma"],
    "paligemma: Gemma 2": _paligemma2,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "gemma4: per-layer embeddings": lambda: _gemma4(hidden_size_per_layer_input=8),
    "gemma4: experts": lambda: _gemma4(**EXPERTS),
    "gemma4: soft-cap": lambda: _gemma4(final_logit_softcapping=20.0),
    "gemma4: shared keys and values": lambda: _gemma4(
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8,
    ),
    "gemma4: both directions": lambda: _gemma4(use_bidirectional_attention="vision"),
    "gemma4_unified": _gemma4_unified,
}
REMARKS = {
    "gemma3n": "ResNet for its tower, which needs timm",
    "shieldgemma2": "Gemma 3's processor: its own writes the prompt",
}
