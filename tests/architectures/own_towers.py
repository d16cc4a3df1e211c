"""Models with a tower or tokens of their own kind: NemotronH Omni, LFM2, discrete image tokens."""

import torch
import transformers as tr

from tests.architectures.prompts import ByHand, cut, patches, patches_pil, words
from tests.architectures.small import model_of, small
from tests.tiny_models import END, IMAGE, QWEN_TEMPLATE, ROPE, START, VIDEO

PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def _nemotron():
    text = {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
        "chunk_size": 8, "moe_shared_expert_intermediate_size": 32, "use_mamba_kernels": False,
    }  # fmt: skip
    text["num_hidden_layers"] = 4
    vision = {"patch_size": 16, "image_size": 64, "max_img_size": 64,
              "video_temporal_patch_size": 2}  # fmt: skip
    config = small(
        "nemotron_h_omni", text_config=text, vision_config=vision, image_token_id=IMAGE,
        projector_hidden_size=64, vision_hidden_size=32, video_token_id=VIDEO, audio_token_id=264,
    )  # fmt: skip

    def inputs(pixels):
        parts, grid = cut(pixels, 16)
        return {"pixel_values": parts.flatten(1), "image_grid_hw": grid[:, 1:]}

    return model_of(config), ByHand(64, 4, inputs)


def _lfm2_vl():
    text = {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    }  # fmt: skip
    vision = {"patch_size": 16, "num_patches": 16}
    config = small("lfm2_vl", text_config=text, vision_config=vision, projector_hidden_size=32)

    def inputs(pixels):
        parts, grid = cut(pixels, 16)
        flat = parts.flatten(1).unflatten(0, (len(pixels), 16))
        ones = torch.ones(flat.shape[:2], dtype=torch.long)
        return {"pixel_values": flat, "spatial_shapes": grid[:, 1:], "pixel_attention_mask": ones}

    return model_of(config), ByHand(64, 4, inputs)


def _cosmos3_edge():
    text = {"rope_parameters": ROPE}
    vision = {"patch_size": 16, "num_patches": 16}
    config = small("cosmos3_edge", text_config=text, vision_config=vision, projector_hidden_size=64)
    images = patches_pil(16, tr.Cosmos3EdgeImageProcessorPil, temporal_patch_size=1)
    names = {"vision_start_token": "<start_of_image>", "vision_end_token": "<end_of_image>"}
    return model_of(config), patches(tr.Cosmos3EdgeProcessor, images=images, **names)


def _hunyuan_vl():
    vision = {
        "patch_size": 16, "max_image_size": 128, "min_image_size": 32, "temporal_patch_size": 1,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "xdrope_section": [2, 2, 2, 2]}
    text = {"rope_parameters": rope, "head_dim": 16}
    config = small(
        "hunyuan_vl", text_config=text, vision_config=vision, im_start_id=START, im_end_id=END,
        im_newline_id=264,
    )  # fmt: skip
    images = patches_pil(16, tr.HunYuanVLImageProcessorPil, temporal_patch_size=1)
    images.size = {"shortest_edge": 64 * 64, "longest_edge": 112 * 112}
    names = {
        "image_token": "<image>", "image_start_token": "<start_of_image>",
        "image_end_token": "<end_of_image>",
    }  # fmt: skip
    processor = tr.HunYuanVLProcessor(images, words("<s>", **names), chat_template=QWEN_TEMPLATE)
    return model_of(config), processor


def _fuyu():
    text = {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}
    config = small("fuyu", text_config=text, image_size=28, patch_size=14)

    def inputs(pixels):
        parts, _ = cut(pixels, 14)
        flat = parts[:, :, 0].permute(0, 2, 3, 1).flatten(1)
        return {"pixel_values": flat.unflatten(0, (len(pixels), 4))}

    return model_of(config), ByHand(28, 4, inputs)


def _emu3():
    names = {f"<|visual token {i:06d}|>": 300 + i for i in range(16)}
    vq = {
        "codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1, "attn_resolutions": [3], "temporal_downsample_factor": 4,
        "hidden_size": 32, "num_attention_heads": 1, "head_dim": 32,
    }  # fmt: skip
    config = small(
        "emu3", vq_config=vq, image_token_id=IMAGE,
        vocabulary_map=names | {"<image>": IMAGE, "<|extra_200|>": 330},
    )  # fmt: skip

    tokens = {
        "image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "image_wrapper_token": "<fake_token_around_image>", "eof_token": "<global-img>",
    }  # fmt: skip
    images = tr.Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=32 * 32)
    return model_of(config), tr.Emu3Processor(images, words("<s>", **tokens))


def _chameleon():
    names = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 300 + i for i in range(16)}
    vq = {
        "embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "resolution": 8,
        "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
    }  # fmt: skip
    config = small(
        "chameleon", vq_config=vq, vocabulary_map=names | {"<image>": IMAGE}, image_token_id=IMAGE
    )
    images = tr.ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    tokens = {"image_token": "<image>", "boi_token": "<start_of_image>",
              "eoi_token": "<end_of_image>"}  # fmt: skip
    processor = tr.ChameleonProcessor(images, words("<s>", **tokens), image_seq_length=4)
    return model_of(config), processor


BUILDERS = {
    "nemotron_h_omni": _nemotron,
    "lfm2_vl": _lfm2_vl,
    "cosmos3_edge": _cosmos3_edge,
    "hunyuan_vl": _hunyuan_vl,
    "fuyu": _fuyu,
    "emu3": _emu3,
    "chameleon": _chameleon,
}
REMARKS = {}
