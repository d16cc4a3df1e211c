"""Qwen-VL and models with its processor: flat patches, merged two by two; positions in 3D."""

import transformers as tr

from tests import tiny_models
from tests.architectures.prompts import patches, patches_pil
from tests.architectures.small import model_of, small
from tests.tiny_models import END, ROPE, START

INTERLEAVED = ROPE | {"mrope_interleaved": True}
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]


def _qwen3_vl_moe():
    text = {"rope_parameters": INTERLEAVED}
    config = small("qwen3_vl_moe", text_config=text, vision_config={"patch_size": 16})
    return model_of(config), patches(tr.Qwen3VLProcessor, 16)


def _cosmos3_omni():
    text = {"rope_parameters": INTERLEAVED}
    config = small("cosmos3_omni", text_config=text, vision_config={"patch_size": 16})
    return model_of(config), patches(tr.Qwen3VLProcessor, 16)


def _hybrid(name):
    text = {"rope_parameters": INTERLEAVED | {"partial_rotary_factor": 1.0}, "layer_types": HYBRID}
    config = small(name, text_config=text, vision_config={"patch_size": 16})
    return model_of(config), patches(tr.Qwen3VLProcessor, 16)


def _qwen4_exp():
    text = {
        "rope_parameters": INTERLEAVED, "hc_count": 2, "hc_lowrank": 8, "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64, "split_ngram_parts": 2, "heads_per_ngram": 2,
        "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2,
    }  # fmt: skip
    config = small("qwen4_exp", text_config=text, vision_config={"patch_size": 16})
    return model_of(config), patches(tr.Qwen3VLProcessor, 16)


def _omni(name, patch):
    text = {"rope_parameters": ROPE if patch == 14 else INTERLEAVED}
    audio = {
        "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
        "output_dim": 64, "num_mel_bins": 16, "max_source_positions": 20, "n_window": 4,
    }  # fmt: skip
    if patch == 16:
        audio["downsample_hidden_size"] = 16
    config = small(
        name, text_config=text, audio_config=audio, vision_config={"patch_size": patch},
        audio_start_token_id=END + 2, vision_start_token_id=START,
    )  # fmt: skip
    processor_class = tr.Qwen2_5OmniProcessor if patch == 14 else tr.Qwen3OmniMoeProcessor
    names = {
        "audio_token": "<end_of_utterance>", "vision_bos_token": "<start_of_image>",
        "vision_eos_token": "<end_of_image>", "audio_bos_token": "<global-img>",
        "audio_eos_token": "<fake_token_around_image>",
    }  # fmt: skip
    return model_of(config), patches(processor_class, patch, audio=True, **names)


def _exaone4_5():
    config = small("exaone4_5")
    return model_of(config), patches(tr.Exaone4_5_Processor)


def _hyperclovax():
    text = {"residual_multiplier": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0}
    config = small("hyperclovax_vision_v2", text_config=text)
    return model_of(config), patches(tr.HyperCLOVAXVisionV2Processor)


def _dots3_note():
    text = {"num_key_value_heads": 4, "layer_types": ["indexed_attention", "sliding_attention"] * 2}
    audio = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "feature_size": 16,
        "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": 64,
        "conv_output_size": 16,
    }  # fmt: skip
    tower = {
        "moe_intermediate_size": 32, "num_local_experts": 4, "adapter_in_dim": 32,
        "adapter_out_dim": 64, "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    config = small("dots3_note", text_config=text, audio_config=audio, vision_config=tower)
    names = {"image": "<|imgpad|>", "video": "<|video_pad|>", "utterance": "<|audio_comp_pad|>"}
    template = tiny_models.QWEN_TEMPLATE.replace("<image>", "<|imgpad|>")
    processor = patches(
        tr.Dots3NoteProcessor, template=template, image_token="<|imgpad|>",
        video_token="<|video_pad|>",
        images=patches_pil(temporal_patch_size=1), **names,
    )  # fmt: skip
    return model_of(config), processor


def _lfm3_vl():
    text = {"layer_types": ["conv", "sliding_attention", "conv", "full_attention"]}
    tower = {"patch_size": 16, "layer_types": ["conv", "full_attention"]}
    config = small("lfm3_vl", text_config=text, vision_config=tower, projector_hidden_size=32)
    names = {"vision_start_token": "<start_of_image>", "vision_end_token": "<end_of_image>"}
    return model_of(config), patches(tr.Lfm3VlProcessor, 16, **names)


def _cohere_compass():
    text = {"logit_scale": 0.25, "rope_parameters": {"full_attention": INTERLEAVED}}
    config = small("cohere_compass", text_config=text, vision_config={"patch_size": 16})
    names = {
        "image": "<|IMAGE_PAD|>", "video": "<|VIDEO_PAD|>", "start": "<|VISION_START|>",
        "end": "<|VISION_END|>",
    }  # fmt: skip
    template = tiny_models.QWEN_TEMPLATE
    for old, new in (("<image>", names["image"]), ("<start_of_image>", names["start"]),
                     ("<end_of_image>", names["end"])):  # fmt: skip
        template = template.replace(old, new)
    processor = patches(
        tr.CohereCompassProcessor, 16, template, image_token=names["image"],
        video_token=names["video"], images=patches_pil(16, tr.CohereCompassImageProcessorPil),
        **names,
    )  # fmt: skip
    return model_of(config), processor


def _video_llama_3():
    images = tr.VideoLlama3ImageProcessorPil(
        patch_size=14, merge_size=1, temporal_patch_size=1,
        size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
    )  # fmt: skip
    return model_of(small("video_llama_3")), patches(tr.VideoLlama3Processor, images=images)


def _paddleocr_vl():
    config = small("paddleocr_vl", text_config={"rope_parameters": ROPE})
    images = tr.PaddleOCRVLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=1,
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112},
    )  # fmt: skip
    words = patches(tr.Qwen2VLProcessor).tokenizer
    processor = tr.PaddleOCRVLProcessor(images, words, chat_template=tiny_models.QWEN_TEMPLATE)
    return model_of(config), processor


def _ernie():
    text = {
        "moe_intermediate_size": [32, 16], "mlp_layer_types": ["dense", *["sparse"] * 3],
        "rope_parameters": ROPE | {"mrope_section": [3, 3, 2]},
    }  # fmt: skip
    config = small("ernie4_5_vl_moe", text_config=text)
    images = patches_pil(kind=tr.Ernie4_5_VLMoeImageProcessorPil, temporal_patch_size=1)
    names = {
        "image_start_token": "<start_of_image>", "image_end_token": "<end_of_image>",
        "video_start_token": "<global-img>", "video_end_token": "<end_of_utterance>",
    }  # fmt: skip
    return model_of(config), patches(tr.Ernie4_5_VLMoeProcessor, images=images, **names)


BUILDERS = {
    "qwen2_vl": tiny_models.BUILDERS["qwen2_vl"],
    "qwen2_5_vl": tiny_models.BUILDERS["qwen2_5_vl"],
    "qwen3_vl": tiny_models.BUILDERS["qwen3_vl"],
    "qwen3_vl_moe": _qwen3_vl_moe,
    "cosmos3_omni": _cosmos3_omni,
    "qwen3_5": lambda: _hybrid("qwen3_5"),
    "qwen3_5_moe": lambda: _hybrid("qwen3_5_moe"),
    "qwen4_exp": _qwen4_exp,
    "qwen2_5_omni_thinker": lambda: _omni("qwen2_5_omni_thinker", 14),
    "qwen3_omni_moe_thinker": lambda: _omni("qwen3_omni_moe_thinker", 16),
    "exaone4_5": _exaone4_5,
    "hyperclovax_vision_v2": _hyperclovax,
    "dots3_note": _dots3_note,
    "lfm3_vl": _lfm3_vl,
    "cohere_compass": _cohere_compass,
    "video_llama_3": _video_llama_3,
    "paddleocr_vl": _paddleocr_vl,
    "ernie4_5_vl_moe": _ernie,
}
REMARKS = {}
