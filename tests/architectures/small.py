"""Configs of a few thousand parameters from the published ones, and weights that show faults."""

from typing import Any

import torch
import transformers as tr
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES,
)

from tests.tiny_models import BOS, END, EOS, IMAGE, PAD, START, TEXT, VIDEO

# What a decoder's config gets, where it has such a field and uses it.
# An indexer of few heads gives many keys the same score, 0, and its choice depends on the padding.
DECODER = TEXT | {
    "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_num_experts": 4,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "moe_topk": 2, "moe_k": 2,
    "moe_num_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "index_topk": 8, "index_head_dim": 16, "index_n_heads": 8, "mlp_ratio": 2,
    "shared_experts_intermediate_size": 32, "linear_num_heads": 4, "linear_head_dim": 16,
    "use_cache": True,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "depth": 2, "num_heads": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "image_size": 28,
    "patch_size": 14, "out_hidden_size": 64, "text_hidden_size": 64, "embed_dim": 32,
    "num_position_embeddings": 16, "fullatt_block_indexes": [1], "deepstack_visual_indexes": [0, 1],
    "window_size": 56, "mlp_dim": 64, "output_channels": 16, "initializer_range": 0.02,
    "spatial_merge_size": 2, "vision_use_head": False, "projection_dim": 32, "mlp_ratio": 2,
}  # fmt: skip
JOINT = {"hidden_size": 64, "vocab_size": TEXT["vocab_size"], "projection_dim": 64}
IDS = {
    "image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END, "image_start": START,
    "image_end": END, "boi": START, "eoi": END, "video_start": END + 2, "video_end": END + 3,
}  # fmt: skip
TOKENS = {f"{name}_token_{kind}": id for name, id in IDS.items() for kind in ("id", "index")}


def small(model_type: str, **changes: Any) -> Any:
    """A small config of a type of model; `changes` by field, a dict for each config inside it.

    A config without others inside is a decoder's.
    """
    return _shrunk(CONFIG_MAPPING[model_type], changes, DECODER)


def _shrunk(config_class: Any, changes: dict[str, Any], sizes: dict[str, Any]) -> Any:
    usual = vars(config_class())
    inner = {key: value for key, value in usual.items() if isinstance(value, tr.PreTrainedConfig)}
    parts = {}
    for key, part in inner.items():
        own = changes.pop(key, {})
        is_decoder = "text" in key or key == "decoder"
        given = isinstance(own, tr.PreTrainedConfig)
        kind = DECODER if is_decoder else TOWER
        parts[key] = own if given else _shrunk(type(part), dict(own), kind)
    joins = bool(inner) and "num_hidden_layers" not in usual  # and has no layers of its own
    sizes = JOINT if joins else sizes
    known = {
        key: float(value) if isinstance(usual[key], float) else value
        for key, value in (sizes | TOKENS).items()
        if _has(usual, key)
    }
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    known |= {key: value for key, value in ids.items() if key in usual and sizes is DECODER}
    return config_class(**known | parts | changes)


def tower(config_class: Any, **changes: Any) -> Any:
    """A small config of a part that is not a decoder."""
    return _shrunk(config_class, changes, TOWER)


def _has(usual: dict[str, Any], key: str) -> bool:
    return usual.get(key) is not None or (key in TOKENS and key in usual)


def model_of(config: Any) -> Any:
    """The image-text-to-text model of a config, freshly initialised."""
    return getattr(tr, TYPES[config.model_type])(config)


@torch.no_grad()
def jitter(model: Any) -> Any:
    """The model with lively weights and saved buffers: no norm, factor or bias stays 1 or 0."""
    generator = torch.Generator().manual_seed(11)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    for key, weight in model.named_parameters():
        if weight.ndim >= 2 and not weight.any():  # query tokens, Gemma 3's projection
            weight.copy_(0.2 * noise(weight))
        elif weight.ndim >= 2:
            weight.mul_(4)
        elif "norm" in key.lower() and key.endswith("weight"):
            weight.add_(0.3 * noise(weight))
        else:
            weight.add_(0.1 * noise(weight))
    saved = model.state_dict().keys()
    for key, buffer in model.named_buffers():
        if key in saved and buffer.is_floating_point():
            buffer.mul_(1 + 0.2 * noise(buffer).abs()).add_(0.02 * noise(buffer).abs())
    return model.eval().requires_grad_(False)
