"""Tiny random vision-language models of 14 architectures, built from configs: no downloads.

`build(name)` gives a model and its real processor over a byte-level tokenizer.
"""

from functools import cache

import tokenizers as tk
import torch
import transformers as tr
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.model.processor_files import without_video_check

# A byte-level vocabulary: 256 bytes, then the special tokens all families together need.
SPECIAL = {
    "pad": "<pad>", "bos": "<s>", "eos": "</s>", "image": "<image>", "video": "<video>",
    "start": "<start_of_image>", "end": "<end_of_image>", "fake": "<fake_token_around_image>",
    "global": "<global-img>", "utterance": "<end_of_utterance>",
}  # fmt: skip
PAD, BOS, EOS, IMAGE, VIDEO, START, END = range(256, 263)
VOCAB = 512  # PaliGemma's and Idefics3's processors add more tokens
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "vocab_size": VOCAB, "max_position_embeddings": 512, "pad_token_id": PAD, "bos_token_id": BOS,
    "eos_token_id": EOS,
}  # fmt: skip
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


@cache
def _tokenizer_object(bos: str | None, special: tuple[str, ...]) -> tk.Tokenizer:
    alphabet = sorted(tk.pre_tokenizers.ByteLevel.alphabet())
    model = tk.models.BPE({byte: i for i, byte in enumerate(alphabet)}, merges=[])
    tokenizer = tk.Tokenizer(model)
    tokenizer.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tk.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = tk.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def tokenizer(
    bos: str | None = "<s>", special: tuple[str, ...] = tuple(SPECIAL.values()), **names
) -> tr.PreTrainedTokenizerFast:
    return tr.PreTrainedTokenizerFast(
        tokenizer_object=tk.Tokenizer.from_str(_tokenizer_object(bos, special).to_str()),
        pad_token="<pad>", bos_token=bos, eos_token="</s>", padding_side="left", **names,
    )  # fmt: skip


def llama(**changes):
    return tr.LlamaConfig(**TEXT | {"num_key_value_heads": 2} | changes)


def qwen2(**changes):
    return tr.Qwen2Config(**TEXT | {"num_key_value_heads": 2} | changes)


def opt(**changes):
    names = {"ffn_dim": 128, "word_embed_proj_dim": 64, "bos_token_id": EOS}
    text = {key: value for key, value in TEXT.items() if key != "intermediate_size"}
    return tr.OPTConfig(**text | names | changes)


def _llava():
    config = tr.LlavaConfig(
        vision_config=tr.CLIPVisionConfig(**VISION), text_config=llama(), image_token_index=IMAGE,
        vision_feature_layer=-2, image_seq_length=4,
    )  # fmt: skip
    images = tr.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    template = (
        "{% for m in messages %}USER: "
        "{% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}"
        "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}"
        "{% endfor %} ASSISTANT:"
    )
    processor = tr.LlavaProcessor(
        images, tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    return tr.LlavaForConditionalGeneration(config), processor


def _llava_next():
    config = tr.LlavaNextConfig(
        vision_config=tr.CLIPVisionConfig(**VISION), text_config=llama(), image_token_index=IMAGE,
        vision_feature_layer=-2, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )  # fmt: skip
    images = tr.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )  # fmt: skip
    processor = tr.LlavaNextProcessor(
        images, tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tr.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision():
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = tr.LlavaOnevisionConfig(
        vision_config=tr.SiglipVisionConfig(**VISION, vision_use_head=False), text_config=qwen2(),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-1,
        image_grid_pinpoints=pinpoints, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    images = tr.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    processor = without_video_check(tr.LlavaOnevisionProcessor)(
        images, tokenizer(bos=None), BaseVideoProcessor(), num_image_tokens=4,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return tr.LlavaOnevisionForConditionalGeneration(config), processor


def _blip_parts(qformer_vocab: int):
    qformer = {
        "vocab_size": qformer_vocab, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "encoder_hidden_size": 48,
    }  # fmt: skip
    # Their own default is 1e-10: towers that see nothing.
    vision = VISION | {"initializer_range": 0.02}
    return {"vision_config": vision, "qformer_config": qformer, "num_query_tokens": 6,
            "image_token_index": IMAGE}  # fmt: skip


def _blip2(text, bos: str):
    config = tr.Blip2Config(**_blip_parts(50), text_config=text.to_dict())
    images = tr.BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = tr.Blip2Processor(images, tokenizer(bos), num_query_tokens=6)
    return tr.Blip2ForConditionalGeneration(config), processor


def _instructblip():
    config = tr.InstructBlipConfig(**_blip_parts(VOCAB), text_config=llama().to_dict())
    images = tr.BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = tr.InstructBlipProcessor(images, tokenizer(), tokenizer(), num_query_tokens=6)
    return tr.InstructBlipForConditionalGeneration(config), processor


QWEN_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}"
    "<start_of_image><image><end_of_image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
)


def _qwen(config_class, model_class, processor_class, patch=14, text=None, **vision):
    tower = {"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2}
    config = config_class(
        text_config=TEXT | {"num_key_value_heads": 2, "rope_parameters": ROPE} | (text or {}),
        vision_config=tower | vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    images = tr.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112},
    )  # fmt: skip
    words = tokenizer(
        None, extra_special_tokens={"image_token": "<image>", "video_token": "<video>"}
    )
    processor = without_video_check(processor_class)(
        images, words, BaseVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return model_class(config), processor


def _qwen2_vl():
    return _qwen(
        tr.Qwen2VLConfig, tr.Qwen2VLForConditionalGeneration, tr.Qwen2VLProcessor,
        embed_dim=32, hidden_size=64, mlp_ratio=2,
    )  # fmt: skip


def _qwen2_5_vl():
    return _qwen(
        tr.Qwen2_5_VLConfig, tr.Qwen2_5_VLForConditionalGeneration, tr.Qwen2_5_VLProcessor,
        hidden_size=32, intermediate_size=64, out_hidden_size=64, window_size=56,
        fullatt_block_indexes=[1],
    )  # fmt: skip


def _qwen3_vl():
    return _qwen(
        tr.Qwen3VLConfig, tr.Qwen3VLForConditionalGeneration, tr.Qwen3VLProcessor, patch=16,
        text={"head_dim": 16, "rope_parameters": ROPE | {"mrope_interleaved": True}},
        hidden_size=32, intermediate_size=64, out_hidden_size=64, temporal_patch_size=2,
        num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip


def _gemma3():
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    text = TEXT | {
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
        "layer_types": kinds,
    }  # fmt: skip
    config = tr.Gemma3Config(
        text_config=text, vision_config=VISION | {"vision_use_head": False}, mm_tokens_per_image=4,
        image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END,
    )  # fmt: skip
    images = tr.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    names = {
        "image_token": "<image>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    processor = tr.Gemma3Processor(
        images, tokenizer(extra_special_tokens=names), image_seq_length=4
    )
    return tr.Gemma3ForConditionalGeneration(config), processor


def _paligemma():
    text = tr.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=16)
    config = tr.PaliGemmaConfig(
        text_config=text.to_dict(), image_token_index=IMAGE, projection_dim=64, hidden_size=64,
        vision_config=VISION | {"vision_use_head": False, "projection_dim": 64,
                                "model_type": "siglip_vision_model"},
    )  # fmt: skip
    images = tr.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    names = {"image_token": "<image>"}
    processor = tr.PaliGemmaProcessor(images, tokenizer(extra_special_tokens=names))
    return tr.PaliGemmaForConditionalGeneration(config), processor


def _idefics(config_class, model_class):
    config = config_class(
        text_config=llama().to_dict(), vision_config=VISION | {"image_size": 56},
        image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD,
    )  # fmt: skip
    return model_class(config)


SMOL_TEMPLATE = (
    "{% for m in messages %}User:{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %} {{ c.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}Assistant:"
)


def _idefics3():
    images = tr.Idefics3ImageProcessorPil(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    processor = tr.Idefics3Processor(images, tokenizer(), image_seq_len=4)
    return _idefics(tr.Idefics3Config, tr.Idefics3ForConditionalGeneration), processor


def _smolvlm():
    processing_smolvlm.num2words = str  # a package that only prompts about videos need
    images = tr.SmolVLMImageProcessorPil(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    processor = without_video_check(tr.SmolVLMProcessor)(
        images, tokenizer(), BaseVideoProcessor(), image_seq_len=4, chat_template=SMOL_TEMPLATE
    )
    return _idefics(tr.SmolVLMConfig, tr.SmolVLMForConditionalGeneration), processor


def _internvl():
    config = tr.InternVLConfig(
        text_config=qwen2().to_dict(), image_token_id=IMAGE, image_seq_length=4,
        downsample_ratio=0.5, vision_feature_layer=-1,
        vision_config=VISION | {"image_size": [56, 56], "patch_size": [14, 14]},
    )  # fmt: skip
    images = tr.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4
    )
    names = {"start_image_token": "<start_of_image>", "end_image_token": "<end_of_image>",
             "context_image_token": "<image>", "video_token": "<video>"}  # fmt: skip
    words = tokenizer(None, extra_special_tokens=names)
    processor = without_video_check(tr.InternVLProcessor)(
        images, words, BaseVideoProcessor(), image_seq_length=4
    )
    return tr.InternVLForConditionalGeneration(config), processor


BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "blip2_opt": lambda: _blip2(opt(), "</s>"),
    "blip2_llama": lambda: _blip2(llama(), "<s>"),
    "instructblip": _instructblip,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
}


def build(name: str):
    """The model with lively random weights, and its processor or None."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        # Freshly initialised norms are 1, biases 0 and logits nearly equal: many bugs would not
        # show.
        for key, weight in model.named_parameters():
            if weight.ndim >= 2 and not weight.any():  # query tokens, Gemma 3's projection
                weight.normal_(std=0.2, generator=generator)
            elif weight.ndim >= 2:
                weight.mul_(4)
            elif "norm" in key.lower() and key.endswith("weight"):
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
            else:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval().requires_grad_(False), processor
