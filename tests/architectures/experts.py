"""Large mixtures of experts with towers of their own: Llama 4, Kimi, Molmo 2 and others."""

import torch
import transformers as tr

from tests.architectures.prompts import ByHand, cut, words
from tests.architectures.small import model_of, small
from tests.tiny_models import END, IMAGE, START

SPARSE = ["dense", "sparse", "sparse", "sparse"]


def _llama4():
    text = {
        "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "attention_chunk_size": 16,
        "num_experts_per_tok": 1, "moe_layers": [1, 3], "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    vision = {
        "image_size": 56, "intermediate_size": 128, "vision_output_dim": 64,
        "projector_input_dim": 64, "projector_output_dim": 64,
    }  # fmt: skip
    return model_of(small("llama4", text_config=text, vision_config=vision)), ByHand(
        56, 4, before="<start_of_image>", after="<end_of_image>"
    )


def _aria():
    vision = {"image_size": 980, "patch_size": 140}  # its processor gives pictures of 980 pixels
    config = small(
        "aria", vision_config=vision, projector_patch_to_query_dict={49: 4},
        text_config={"num_key_value_heads": 4},
    )  # fmt: skip
    processor = tr.AriaProcessor(
        tr.AriaImageProcessorPil(), words("<s>", image_token="<image>"), size_conversion={980: 4}
    )  # fmt: skip
    return model_of(config), processor


def _kimi_k25():
    vision = {"pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2}
    text = {
        "num_key_value_heads": 4,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = small("kimi_k25", vision_config=vision, text_config=text, projection_hidden_size=32)

    def inputs(pixels):
        parts, grid = cut(pixels, 14)
        return {"pixel_values": parts[:, :, 0], "image_grid_thw": grid}

    return model_of(config), ByHand(56, 4, inputs)


def _molmo2():
    adapter = {
        "vision_feature_layer": [-1, -2], "hidden_size": 32, "intermediate_size": 64,
        "text_hidden_size": 64,
    }  # fmt: skip
    vision = {"image_size": [56, 56], "num_position_embeddings": 16}
    config = small(
        "molmo2", vision_config=vision, adapter_config=adapter, image_patch_id=IMAGE,
        text_config={"additional_vocab_size": 0}, image_start_token_id=START,
        image_end_token_id=END, low_res_image_start_token_id=START,
    )  # fmt: skip

    def inputs(pixels):
        parts, _ = cut(pixels, 14)
        images = len(pixels)
        square = torch.arange(16).reshape(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
        pooling = torch.cat([square + 16 * i for i in range(images)])
        return {
            "pixel_values": parts.flatten(1).unflatten(0, (images, 16)),
            "image_token_pooling": pooling,
            "image_grids": torch.tensor([[2, 2, 0, 0]] * images),
            "image_num_crops": torch.ones(images, dtype=torch.long),
        }

    marks = {"before": "<start_of_image>", "after": "<end_of_image>"}
    return model_of(config), ByHand(56, 4, inputs, types=True, **marks)


def _flat(times):
    def inputs(pixels):
        parts, grid = cut(pixels, 14, times)
        return {"pixel_values": parts.flatten(1), "image_grid_thw": grid}

    return inputs


def _minimax_m3_vl():
    text = {
        "mlp_layer_types": SPARSE, "layer_types": ["full_attention"] * 4, "rotary_dim": 8,
        "dense_intermediate_size": 64, "shared_intermediate_size": 32, "index_block_size": 4,
        "index_topk_blocks": 2,
    }  # fmt: skip
    config = small(
        "minimax_m3_vl", text_config=text, projector_hidden_size=64, merged_hidden_size=256,
        vision_config={"hidden_size": 48},
    )  # fmt: skip
    return model_of(config), ByHand(56, 4, _flat(2))


def _step3p7():
    text = {
        "mlp_layer_types": SPARSE, "layer_types": ["full_attention", "sliding_attention"] * 2,
        "share_expert_dim": 32, "num_sliding_attention_heads": 4, "sliding_window": 8,
    }  # fmt: skip
    vision = {"image_size": 112, "max_position_embeddings": 64}
    return model_of(small("step3p7", text_config=text, vision_config=vision)), ByHand(112, 4)


def _muse(name):
    kinds = ["sliding_attention", "full_attention"] * 2
    text = {"layer_types": kinds, "output_multiplier": 0.5, "num_key_value_heads": 2,
            "layer_rope_theta": [1e4, 0, 1e4, 0]}  # fmt: skip
    if name == "muse_spark":
        text |= {"mlp_layer_types": SPARSE, "moe_hidden_size": 32}
    vision = {
        "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16,
        "layer_types": ["window_attention", "full_attention"],
    }  # fmt: skip
    parts = {"text_config": text, "vision_config": vision}
    if name == "muse_spark":
        parts["audio_config"] = {
            "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_hidden_layers": 4,
        }  # fmt: skip
    config = small(name, out_hidden_size=128, projector_hidden_size=32, **parts)
    return model_of(config), ByHand(56, 4, _flat(2))


def _inkling():
    text = {
        "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid_sliding", "hybrid"],
        "mlp_layer_types": SPARSE, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
        "swa_head_dim": 16, "sliding_window_size": 8, "d_rel": 4, "rel_extent": 16,
        "logits_mup_width_multiplier": 2.0,
    }  # fmt: skip
    audio = {"n_mel_bins": 8, "mel_vocab_size": 16}
    vision = {"patch_size": 14, "num_hidden_layers": 4}
    config = small(
        "inkling_mm_model", text_config=text, audio_config=audio, vision_config=vision,
        image_bos_token_id=START, audio_bos_token_id=264, audio_token_id=265,
    )  # fmt: skip

    def inputs(pixels):
        parts, _ = cut(pixels, 14, 2)
        return {"pixel_values": parts.permute(0, 2, 3, 4, 1)}

    return model_of(config), ByHand(28, 4, inputs)


def _inkling2():
    text = {
        "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid_sliding", "hybrid"],
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16,
        "sliding_window_size": 8, "d_rel": 4, "rel_extent": 16, "unpadded_vocab_size": 500,
        "n_layers_per_attn_res_block": 2,
    }  # fmt: skip
    vision = {"posemb_grid_size": 4, "projection_hidden_dim": 64}
    config = small("inkling2", text_config=text, vision_config=vision)

    def inputs(pixels):
        parts, grid = cut(pixels, 28)
        return {"pixel_values": parts[:, :, 0].permute(0, 2, 3, 1), "image_grid_thw": grid}

    return model_of(config), ByHand(56, 4, inputs)


BUILDERS = {
    "llama4": _llama4,
    "aria": _aria,
    "kimi_k25": _kimi_k25,
    "molmo2": _molmo2,
    "minimax_m3_vl": _minimax_m3_vl,
    "step3p7": _step3p7,
    "muse_glimmer": lambda: _muse("muse_glimmer"),
    "muse_spark": lambda: _muse("muse_spark"),
    "inkling_mm_model": _inkling,
    "inkling2": _inkling2,
}
REMARKS = {}
