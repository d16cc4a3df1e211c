"""Tiles of a fixed size, or any size: InternVL, Idefics, Cohere, Pixtral and others."""

import torch
import transformers as tr

from tests import tiny_models
from tests.architectures.prompts import ByHand, square, words
from tests.architectures.small import model_of, small
from tests.tiny_models import IMAGE, PAD


def _got_tiles():
    return tr.GotOcr2ImageProcessorPil(size=square(56), crop_to_patches=True, max_patches=4)


def _qianfan_ocr():
    config = small(
        "qianfan_ocr", image_seq_length=4, downsample_ratio=0.5,
        vision_config={"image_size": [56, 56], "patch_size": [14, 14]},
    )  # fmt: skip
    names = {
        "start_image_token": "<start_of_image>", "end_image_token": "<end_of_image>",
        "image": "<IMG_CONTEXT>", "context_image_token": "<IMG_CONTEXT>", "utterance": "<image>",
    }  # fmt: skip
    processor = tr.QianfanOCRProcessor(
        _got_tiles(), words(**names), image_seq_length=4, chat_template=tiny_models.SMOL_TEMPLATE
    )
    return model_of(config), processor


def _aya_vision():
    config = small("aya_vision", downsample_factor=2, vision_config={"image_size": 56})
    names = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    processor = tr.AyaVisionProcessor(
        _got_tiles(), words(image="<|IMG_PATCH|>", utterance="<image>", extra=names),
        patch_size=14, img_size=56, downsample_factor=2,
    )  # fmt: skip
    return model_of(config), processor


def _cohere2_vision():
    config = small(
        "cohere2_vision", vision_config={"image_size": 56}, downsample_factor=2,
        alignment_intermediate_size=64,
    )  # fmt: skip
    names = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>",
        "img_line_break_token": "<global-img>",
    }  # fmt: skip
    images = _got_tiles()
    images.patch_size = 2  # side of a tile in tokens
    return model_of(config), tr.Cohere2VisionProcessor(images, words(**names))


def _pixtral():
    def inputs(pixels):
        sizes = torch.tensor([[56, 56]] * len(pixels))
        return {"pixel_values": pixels, "image_sizes": sizes}

    return ByHand(56, 4, inputs, after="<end_of_image>")


def _mistral3():
    text = {"sliding_window": None}
    return model_of(small("mistral3", text_config=text, vision_config={"image_size": 112})), (
        _pixtral()
    )


def _mistral_large4():
    text = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "layer_types": ["indexed_attention"] * 4, "indexer_types": ["full"] * 4,
        "no_rope_layers": [1, 1, 1, 0], "kv_source_layers": [0, 1, 2, 3], "head_dim": 8,
        "num_key_value_heads": 4,
    }  # fmt: skip
    config = small("mistral_large4", text_config=text, vision_config={"image_size": 112})
    return model_of(config), _pixtral()


def _lighton_ocr():
    config = small("lighton_ocr", vision_config={"image_size": 112})
    names = {
        "image_token": "<image>", "image_break_token": "<global-img>",
        "image_end_token": "<end_of_image>",
    }  # fmt: skip
    images = tr.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14 * 2)
    return model_of(config), tr.LightOnOcrProcessor(images, words(**names))


def _idefics2():
    config = small(
        "idefics2", image_token_id=IMAGE, vision_config={"image_size": 56},
        perceiver_config={
            "hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1,
            "resampler_n_heads": 4, "resampler_head_dim": 16, "num_key_value_heads": 2,
        },
    )  # fmt: skip
    images = tr.Idefics2ImageProcessorPil(
        size={"longest_edge": 56, "shortest_edge": 28}, do_image_splitting=False
    )
    processor = tr.Idefics2Processor(
        images, words("<s>"), image_seq_len=4, chat_template=tiny_models.SMOL_TEMPLATE
    )
    return model_of(config), processor


def _granite_docling():
    config = small(
        "granite_docling", text_config={"residual_multiplier": 0.5, "logits_scaling": 2.0},
        vision_config={"image_size": 56, "scale_factor": 2, "deepstack_visual_indexes": [0]},
        pad_token_id=PAD,
    )  # fmt: skip
    images = tr.GraniteDoclingImageProcessorPil(size=square(56), max_patches=4)
    processor = tr.GraniteDoclingProcessor(
        images, words("<s>"), image_seq_len=4, chat_template=tiny_models.SMOL_TEMPLATE
    )
    return model_of(config), processor


def _ovis2():
    names = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    text = words(image="<IMG_ATOM>", utterance="<image>", extra=names)
    ids = text.convert_tokens_to_ids(list(names))
    config = small(
        "ovis2", visual_indicator_token_ids=ids,
        vision_config={"vocab_size": 64, "image_size": 56, "hidden_stride": 2},
    )  # fmt: skip
    images = tr.Ovis2ImageProcessorPil(size=square(56), crop_to_patches=True, max_patches=4)
    return model_of(config), tr.Ovis2Processor(images, text, image_seq_length=4)


def _granite4_vision():
    tiles = [[56, 112], [112, 56], [112, 112]]
    config = small(
        "granite4_vision", text_config={"residual_multiplier": 0.5, "logits_scaling": 2.0},
        vision_config={"image_size": 56, "hidden_size": 64}, downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]], spatial_target_layers=[0, 1, 2, 3], image_seq_length=4,
        image_grid_pinpoints=tiles, qformer_config={"vocab_size": 50, "num_hidden_layers": 1},
    )  # fmt: skip
    images = tr.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=square(56), image_grid_pinpoints=tiles
    )
    processor = tr.Granite4VisionProcessor(
        images, words("<s>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, downsample_rate="1/2",
    )  # fmt: skip
    return model_of(config), processor


BUILDERS = {
    "internvl": tiny_models.BUILDERS["internvl"],
    "idefics3": tiny_models.BUILDERS["idefics3"],
    "smolvlm": tiny_models.BUILDERS["smolvlm"],
    "qianfan_ocr": _qianfan_ocr,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "mistral3": _mistral3,
    "mistral_large4": _mistral_large4,
    "lighton_ocr": _lighton_ocr,
    "idefics2": _idefics2,
    "granite_docling": _granite_docling,
    "ovis2": _ovis2,
    "granite4_vision": _granite4_vision,
}
REMARKS = {}
