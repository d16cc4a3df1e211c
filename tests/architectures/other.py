"""Q-Former models, and types that are not decoder-only readers of pictures."""

import transformers as tr

from tests import tiny_models
from tests.architectures.small import model_of, small, tower
from tests.tiny_models import BOS, EOS, IMAGE, PAD, VOCAB

IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
QFORMER = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
           "encoder_hidden_size": 32, "vocab_size": 50, "num_hidden_layers": 2}  # fmt: skip


def _instructblipvideo():
    text = tiny_models.opt()
    config = small(
        "instructblipvideo", text_config=text, qformer_config=QFORMER, num_query_tokens=4
    )
    return model_of(config), None


def _kosmos(name):
    text = {
        "embed_dim": 64, "layers": 4, "ffn_dim": 128, "attention_heads": 4, "dropout": 0.0,
        "attention_dropout": 0.0,
    }  # fmt: skip
    vision = {} if name == "kosmos-2" else {"patch_embed_hidden_size": 32, "max_num_patches": 16}
    config = small(name, text_config=text, vision_config=vision, latent_query_num=4)
    return model_of(config), None


def _git():
    config = small("git", num_image_with_embedding=None)
    return model_of(config), None


def _blip():
    return model_of(small("blip")), None


def _idefics():
    vision = {"embed_dim": 32}
    config = small("idefics", vision_config=vision, cross_layer_interval=2)
    return model_of(config), None


def _evolla():
    protein = {"vocab_size": 32, "intermediate_size": 32}
    config = small(
        "evolla", protein_encoder_config=protein, aligner_num_add_layers=2, resampler_depth=1,
        resampler_dim_head=8, resampler_heads=2, resampler_num_latents=4,
    )  # fmt: skip
    return model_of(config), None


def _mllama():
    text = {"cross_attention_layers": [1, 3]}
    vision = {
        "attention_heads": 4, "num_global_layers": 1, "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }  # fmt: skip
    return model_of(small("mllama", text_config=text, vision_config=vision)), None


def _florence2():
    text = {
        "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4,
        "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "d_model": 64,
        "decoder_start_token_id": EOS, "forced_eos_token_id": EOS,
    }  # fmt: skip
    vision = {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 4],
        "num_groups": [2, 4], "projection_dim": 64,
    }  # fmt: skip
    return model_of(small("florence2", text_config=text, vision_config=vision)), None


def _pix2struct():
    text = {"d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    vision = {"d_kv": 8, "d_ff": 64, "patch_embed_hidden_size": 32, "seq_len": 16}
    return model_of(small("pix2struct", text_config=text, vision_config=vision)), None


def _pp_formulanet():
    text = {
        "encoder_layers": 2, "encoder_attention_heads": 4, "decoder_layers": 2,
        "decoder_ffn_dim": 64, "decoder_attention_heads": 4, "d_model": 64,
    }  # fmt: skip
    vision = {
        "image_size": 64, "patch_size": 16, "post_conv_in_channels": 16, "global_attn_indexes": [1],
        "post_conv_mid_channels": 16, "post_conv_out_channels": 16, "decoder_hidden_size": 64,
    }  # fmt: skip
    return model_of(small("pp_formulanet", text_config=text, vision_config=vision)), None


def _t5gemma2():
    config = small("t5gemma2", encoder={"mm_tokens_per_image": 4, "vocab_size": VOCAB})
    return model_of(config), None


def _udop():
    config = tr.UdopConfig(
        vocab_size=VOCAB, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2,
        num_heads=4, image_size=28, patch_size=14,
    )  # fmt: skip
    return model_of(config), None


def _vision_encoder_decoder():
    decoder = small("bert", is_decoder=True, add_cross_attention=True)
    config = tr.VisionEncoderDecoderConfig(
        encoder=tower(tr.ViTConfig).to_dict(), decoder=decoder.to_dict(), **IDS
    )
    return model_of(config), None


def _pi0():
    text = tr.GemmaConfig(**tiny_models.TEXT, num_key_value_heads=1, head_dim=16)
    vision = tower(tr.SiglipVisionConfig, projection_dim=64)
    inner = tr.PaliGemmaConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64,
        hidden_size=64, image_token_index=IMAGE,
    )  # fmt: skip
    config = tr.PI0Config(vlm_config=inner.to_dict(), dit_config=text.to_dict())
    return model_of(config), None


def _mistral4():
    config = small("mistral4", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    return model_of(config), None


def _diffusion_gemma():
    vision = tower(tr.Gemma4VisionConfig, patch_size=16, position_embedding_size=64)
    text = {"global_head_dim": 16, "num_experts": 4, "top_k_experts": 2,
            "moe_intermediate_size": 32,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}  # fmt: skip
    config = small("diffusion_gemma", text_config=text, vision_config=vision, canvas_length=16)
    return model_of(config), None


BUILDERS = {
    "blip-2": tiny_models.BUILDERS["blip2_opt"],
    "blip-2: Llama": tiny_models.BUILDERS["blip2_llama"],
    "instructblip": tiny_models.BUILDERS["instructblip"],
    "instructblipvideo": _instructblipvideo,
    "kosmos-2": lambda: _kosmos("kosmos-2"),
    "kosmos-2.5": lambda: _kosmos("kosmos-2.5"),
    "git": _git,
    "blip": _blip,
    "idefics": _idefics,
    "evolla": _evolla,
    "mllama": _mllama,
    "florence2": _florence2,
    "pix2struct": _pix2struct,
    "pp_formulanet": _pp_formulanet,
    "t5gemma2": _t5gemma2,
    "udop": _udop,
    "vision-encoder-decoder": _vision_encoder_decoder,
    "pi0": _pi0,
    "mistral4": _mistral4,
    "diffusion_gemma": _diffusion_gemma,
}
REMARKS = {}
# Not decoder-only readers of pictures, and why.
OUT_OF_SCOPE = {
    "blip": "cross-attention",
    "idefics": "cross-attention",
    "evolla": "cross-attention",
    "mllama": "cross-attention",
    "florence2": "encoder-decoder",
    "pix2struct": "encoder-decoder",
    "pp_formulanet": "encoder-decoder",
    "t5gemma2": "encoder-decoder",
    "udop": "encoder-decoder",
    "vision-encoder-decoder": "encoder-decoder",
    "pi0": "diffusion of actions",
    "diffusion_gemma": "diffusion decoder",
    "mistral4": "text only",
}
