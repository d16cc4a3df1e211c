"""Tiny models whose decoders differ from the plain one: by name, from configs, no downloads.

`build_decoder(name)` gives a model with lively weights and buffers, to be run on token ids alone.
"""

from unittest import mock

import torch
import transformers as tr
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

IMAGE, VOCAB = 259, 512
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB, "max_position_embeddings": 512,
    "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258,
}  # fmt: skip
VISION = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14, "depth": 2, "num_heads": 4, "out_hidden_size": 64,
}  # fmt: skip
MIXED = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
LINEAR = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
          "linear_num_value_heads": 4, "layer_types": MIXED}  # fmt: skip
GEMMA4 = {
    "final_logit_softcapping": 5.0, "sliding_window": 8, "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 1e4,
                           "mrope_section": [2, 3, 3]}}  # fmt: skip
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "index_topk": 6, "index_head_dim": 16, "index_n_heads": 8, "num_key_value_heads": 4,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
AUDIO = {
    "model_type": "dots3_note_audio_encoder", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "adapter_input_size": 32,
    "adapter_out_dim": 64, "downsample_hidden_size": 8,
}  # fmt: skip
MULTIPLIERS = {
    "residual_multiplier": 0.22, "logits_scaling": 8.0, "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
}  # fmt: skip
# Model type, and what the text and vision configs, and the config itself, have besides the above.
KINDS = {
    "llama4": ("llama4", {"intermediate_size_mlp": 128, "num_local_experts": 2}, {}, {}),
    "gemma4": ("gemma4", GEMMA4 | {"hidden_size_per_layer_input": 0}, {}, {}),
    "gemma4_per_layer": ("gemma4", GEMMA4 | PER_LAYER | {"num_kv_shared_layers": 2}, {}, {}),
    "gemma4_experts": (
        "gemma4",
        GEMMA4 | EXPERTS | {"hidden_size_per_layer_input": 0, "enable_moe_block": True},
        {},
        {},
    ),
    "gemma4_unified": ("gemma4_unified", GEMMA4, {}, {}),
    "granite4_vision": (
        "granite4_vision", MULTIPLIERS, {"model_type": "clip_vision_model", "hidden_size": 64},
        {"deepstack_layer_map": [], "downsample_rate": "1/2"},
    ),
    "hyperclovax_vision_v2": ("hyperclovax_vision_v2", MULTIPLIERS, {}, {}),
    "cohere_compass": (
        "cohere_compass", {"logit_scale": 0.25, "rope_parameters": ROPE}, {}, {},
    ),
    "muse_glimmer": (
        "muse_glimmer",
        {
            "layer_rope_theta": [1e4, 1e4, 1e4, 0],
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
        {},
        {},
    ),
    "qwen3_5": ("qwen3_5", LINEAR, {}, {}),
    "qwen3_5_moe": (
        "qwen3_5_moe",
        LINEAR
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        {},
        {},
    ),
    "lfm2_vl": ("lfm2_vl", {"layer_types": ["conv", "conv", "conv", "full_attention"]}, {}, {}),
    "minicpmv4_6": ("minicpmv4_6", LINEAR, {}, {}),
    "mistral_large4": ("mistral_large4", LATENT, {}, {}),
    "mistral_large4_shared": (
        "mistral_large4", LATENT | {"indexer_types": ["full", "shared"] * 2}, {}, {}
    ),
    "dots3_note": (
        "dots3_note",
        LATENT,
        {"per_layer_config": {}, "adapter_in_dim": 48, "adapter_out_dim": 64},
        {"audio_config": AUDIO},
    ),
    "nemotron_h_omni": (
        "nemotron_h_omni",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
            "chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
        },
        {"video_temporal_patch_size": 2},
        {},
    ),
}  # fmt: skip


def build_config(name):
    kind, text, vision, top = KINDS[name]
    config_class = CONFIG_MAPPING[kind]
    given = {"image_token_id": IMAGE, "audio_config": None} | top
    for part, changes in (("text_config", TEXT | text), ("vision_config", VISION | vision)):
        default = getattr(config_class(), part, None)
        if default is not None:
            changes = {"model_type": default.model_type} | changes
        given[part] = changes
    return config_class(**given)


def build_decoder(name):
    """The model, with lively weights and buffers."""
    torch.manual_seed(0)
    config = build_config(name)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    return jittered(model)


def jittered(model):
    """The model with weights and buffers that hide nothing: no factor is 1, no bias 0."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2 and not weight.any():
                weight.normal_(std=0.2, generator=generator)
            elif weight.ndim >= 2:
                weight.mul_(4)
            else:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        for key, buffer in model.named_buffers():
            if key.endswith("scalar"):
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model.eval().requires_grad_(False)


REFUSED = {
    "gemma3n": {
        "text_config": {
            "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8,
            "laurel_rank": 4, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8,
        },
    },
    "mllama": {"text_config": {"cross_attention_layers": [1, 3], "rope_parameters": None}},
    "idefics": {},
    "blip": {},
    "diffusion_gemma": {"text_config": EXPERTS},
    "mistral4": {},
    "kosmos-2": {},
    "pi0": {},
}  # fmt: skip


def build_refused(kind):
    """A model of a kind that is refused: most before a weight is looked at."""
    config_class = CONFIG_MAPPING[kind]
    given = {"num_hidden_layers": 2, "vocab_size": VOCAB} if kind == "idefics" else {}
    if (text := REFUSED[kind].get("text_config")) is not None:
        model_type = config_class().get_text_config().model_type
        given = {"text_config": {"model_type": model_type} | TEXT | text}
    config = config_class(**given)
    model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if kind != "gemma3n":
        with torch.device("meta"):
            return model_class(config)
    config.audio_config.conf_num_hidden_layers = 1
    usual = tr.AutoModel.from_config

    def without_timm(part, **settings):  # the tower's package; the probe shows no picture
        return torch.nn.Identity() if part is config.vision_config else usual(part, **settings)

    with mock.patch.object(tr.AutoModel, "from_config", without_timm):
        return model_class(config)
