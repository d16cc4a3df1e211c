"""GLM-V: Qwen-VL's flat patches with an own tower and processor."""

import transformers as tr

from tests.architectures.prompts import patches, patches_pil
from tests.architectures.small import model_of, small
from tests.tiny_models import ROPE


def _glm(name, processor_class, images, text=None):
    config = small(name, text_config={"rope_parameters": ROPE} | (text or {}))
    names = {"extra": ("<|begin_of_video|>", "<|end_of_video|>")}
    if processor_class is None:
        processor_class = tr.Glm46VProcessor
    processor = patches(processor_class, images=patches_pil(kind=images), **names)
    return model_of(config), processor


def _glm5_next():
    text = {
        "num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_nope_head_dim": 16, "hc_mult": 2,
        "layer_types": ["linear_attention", "indexed_attention"] * 2, "index_kpool": 4,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "head_dim": 0,
        "indexer_types": ["full"] * 4, "hc_sinkhorn_iters": 3,
    }  # fmt: skip
    config = small(
        "glm5_next", text_config=text, vision_config={"projection_intermediate_size": 64}
    )
    names = {"extra": ("<|begin_of_video|>", "<|end_of_video|>")}
    images = patches_pil(kind=tr.Glm5NextImageProcessorPil)
    return model_of(config), patches(tr.Glm5NextProcessor, images=images, **names)


BUILDERS = {
    "glm4v": lambda: _glm("glm4v", tr.Glm4vProcessor, tr.Glm4vImageProcessorPil),
    "glm4v_moe": lambda: _glm(
        "glm4v_moe", tr.Glm4vProcessor, tr.Glm4vImageProcessorPil,
        {"rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
    ),
    "glm46v": lambda: _glm("glm46v", tr.Glm46VProcessor, tr.Glm46VImageProcessorPil),
    "glmga": lambda: _glm("glmga", None, tr.GlmgaImageProcessorPil),
    "glm_ocr": lambda: _glm("glm_ocr", None, tr.Glm46VImageProcessorPil),
    "glm5_next": _glm5_next,
}  # fmt: skip
REMARKS = {}
