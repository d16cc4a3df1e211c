"""LLaVA and its relatives: a tower, a projector, a Llama or Qwen decoder."""

import transformers as tr
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.model.processor_files import without_video_check
from tests import tiny_models
from tests.architectures.prompts import ByHand, square, words
from tests.architectures.small import model_of, small
from tests.architectures.substitutes import resnet, with_tower
from tests.tiny_models import IMAGE, VIDEO

PINPOINTS = [[28, 56], [56, 28], [56, 56]]
CROP = {"size": {"shortest_edge": 28}, "crop_size": square(28)}


def _vipllava():
    config = small("vipllava", vision_feature_layer=[-1, -2], image_seq_length=4)
    processor = tr.LlavaProcessor(
        tr.CLIPImageProcessorPil(**CROP), words("<s>"), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return model_of(config), processor


def _llava_next_video():
    config = small(
        "llava_next_video", image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS, image_seq_length=4,
    )  # fmt: skip
    images = tr.LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **CROP)
    processor = without_video_check(tr.LlavaNextVideoProcessor)(
        BaseVideoProcessor(), images, words("<s>"), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return model_of(config), processor


def _video_llava():
    config = small("video_llava", image_seq_length=4, video_seq_length=40)
    images = tr.VideoLlavaImageProcessor(**CROP)
    processor = without_video_check(tr.VideoLlavaProcessor)(
        images, BaseVideoProcessor(), words("<s>"), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return model_of(config), processor


def _perception_lm():
    config = small("perception_lm", projector_pooling_ratio=1, vision_use_cls_token=False)
    config.vision_config.model_args = {"embed_dim": 48}
    vision = tr.SiglipVisionConfig(**tiny_models.VISION, vision_use_head=False)
    model = with_tower(config, tr.TimmWrapperConfig, tr.SiglipVisionModel(vision))
    return model, ByHand(28, 4, lambda pixels: {"pixel_values": pixels[:, None]})


def _fast_vlm():
    config = small("fast_vlm", image_seq_length=4)
    config.vision_config.hidden_size = 32
    return with_tower(config, tr.TimmWrapperConfig, resnet()), ByHand(16, 4)


BUILDERS = {
    "llava": tiny_models.BUILDERS["llava"],
    "llava_next": tiny_models.BUILDERS["llava_next"],
    "llava_onevision": tiny_models.BUILDERS["llava_onevision"],
    "vipllava": _vipllava,
    "llava_next_video": _llava_next_video,
    "video_llava": _video_llava,
    "perception_lm": _perception_lm,
    "fast_vlm": _fast_vlm,
}
REMARKS = {
    "perception_lm": "SigLIP for its tower, which needs timm",
    "fast_vlm": "ResNet for its tower, which needs timm",
}
