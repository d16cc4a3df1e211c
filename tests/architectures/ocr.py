"""Readers of documents, with SAM or SigLIP towers: GOT, DeepSeek, Janus, MiniCPM."""

import transformers as tr
from torch import nn
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.model.processor_files import without_video_check
from tests.architectures.prompts import ByHand, cut, square, words
from tests.architectures.qwen import HYBRID, INTERLEAVED
from tests.architectures.small import model_of, small
from tests.tiny_models import END, IMAGE, START, VIDEO

SAM = {"image_size": 128, "patch_size": 16, "window_size": 4, "global_attn_indexes": [1]}
NEWLINE = 198  # the byte-level token of "\n"
START_END = {"before": "<start_of_image>", "after": "<end_of_image>"}


def _got(name):
    config = small(name, vision_config=SAM, image_seq_length=4)
    return model_of(config), ByHand(128, 4, **START_END)


def _deepseek_ocr2():
    text = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "n_group": 1,
            "topk_group": 1, "num_experts_per_tok": 2}  # fmt: skip
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8}  # fmt: skip
    vision = {"sam_config": SAM | {"downsample_channels": [16, 32]}, "encoder_config": encoder}
    config = small("deepseek_ocr2", text_config=text, vision_config=vision)
    model = model_of(config)
    model.model.vision_tower.query_768_resolution = nn.Embedding(4, 32)  # of 144 queries
    return model, ByHand(128, 5)


def _unlimited_ocr():
    text = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
    vision = {
        "sam_config": SAM | {"downsample_channels": [16, 32]},
        "encoder_config": {"image_size": 28, "patch_size": 14},
    }
    config = small("unlimited_ocr", text_config=text, vision_config=vision)
    return model_of(config), ByHand(128, 7)


def _deepseek_vl():
    config = small("deepseek_vl")
    images = tr.DeepseekVLImageProcessorPil(size=square(28), min_size=14)
    processor = tr.DeepseekVLProcessor(
        images, words("<s>", image_token="<image>"), num_image_tokens=4
    )
    return model_of(config), processor


def _deepseek_vl_hybrid():
    config = small("deepseek_vl_hybrid", high_res_vision_config=SAM | {"num_pos_feats": 16})
    images = tr.DeepseekVLHybridImageProcessorPil(
        size=square(28), high_res_size=square(128), min_size=14
    )
    text = words("<s>", image_token="<image>")
    return model_of(config), tr.DeepseekVLHybridProcessor(images, text, num_image_tokens=4)


def _janus():
    vq = {
        "embed_dim": 8, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32,
        "channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 2, "projection_dim": 32,
        "image_token_embed_dim": 32,
    }  # fmt: skip
    vision = {"num_image_tokens": 4, "projection_dim": 64}
    config = small("janus", vision_config=vision, vq_config=vq)
    names = {"image_token": "<image>", "boi_token": "<start_of_image>",
             "eoi_token": "<end_of_image>"}  # fmt: skip
    images = tr.JanusImageProcessorPil(size=square(28), min_size=14)
    return model_of(config), tr.JanusProcessor(images, words("<s>", **names), num_image_tokens=4)


def _minicpm(name, **joint):
    text = {"rope_parameters": INTERLEAVED | {"partial_rotary_factor": 1.0}, "layer_types": HYBRID}
    vision = {"image_size": 64, "patch_size": 16, "insert_layer_id": 0, "num_hidden_layers": 2}
    config = small(
        name, text_config=text, vision_config=vision, insert_layer_id=0, patch_size=16,
        image_token_id=IMAGE, video_token_id=VIDEO, **joint,
    )  # fmt: skip
    return model_of(config)


def _minicpm_ocr():
    def inputs(pixels):
        grids = pixels.new_tensor([[8, 8]]).int().repeat(len(pixels), 1)
        strips = cut(pixels, 16)[0][:, :, 0].permute(1, 2, 0, 3).flatten(2)
        return {"pixel_values": strips[None], "target_sizes": grids}

    return _minicpm("minicpm_ocr"), ByHand(128, 16, inputs, **START_END)


def _minicpmv(name, processor_class, **joint):
    names = {
        "image_token": "<image>", "video_token": "<video>",
        "image_start_token": "<start_of_image>", "image_end_token": "<end_of_image>",
        "slice_start_token": "<global-img>", "slice_end_token": "<end_of_utterance>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    images = tr.MiniCPMV4_6ImageProcessorPil(scale_resolution=128, patch_size=16)
    videos = BaseVideoProcessor()
    videos.slice_mode, videos.downsample_mode = False, "16x"
    text = words(extra=("<image_id>", "</image_id>"), **names)
    processor = without_video_check(processor_class)(
        image_processor=images, video_processor=videos, tokenizer=text
    )
    return _minicpm(name, **joint), processor


BUILDERS = {
    "got_ocr2": lambda: _got("got_ocr2"),
    "pp_chart2table": lambda: _got("pp_chart2table"),
    "deepseek_ocr2": _deepseek_ocr2,
    "unlimited_ocr": _unlimited_ocr,
    "deepseek_vl": _deepseek_vl,
    "deepseek_vl_hybrid": _deepseek_vl_hybrid,
    "janus": _janus,
    "minicpm_ocr": _minicpm_ocr,
    "minicpmv4_6": lambda: _minicpmv("minicpmv4_6", tr.MiniCPMV4_6Processor),
    "minicpmv4_7": lambda: _minicpmv(
        "minicpmv4_7", tr.MiniCPMV4_7Processor, image_start_id=START, image_end_id=END,
        slice_start_id=END + 2, slice_end_id=END + 3, newline_id=NEWLINE,
    ),
}  # fmt: skip
REMARKS = {}
