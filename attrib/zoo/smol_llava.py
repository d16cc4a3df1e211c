"""`smol-llava`: a pretrained language model of 30 layers (SmolLM2-135M-Instruct) that sees scenes.

The vision tower of tiny-llava and a projector write visual tokens for the language model, whose
weights stay what they are; low-rank additions (LoRA, Hu et al., 2022) adapt it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from attrib.data.scenes import IMAGE_SIZE
from attrib.files import WEIGHTS
from attrib.zoo.models import PATCH_SIZE, VISION_WIDTH

RANK, ALPHA = 12, 24
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BOS = "<|endoftext|>"  # what separates the documents that SmolLM2 was trained on
IMAGE_TOKEN, UNUSED = "<image>", "<reponame>"
_HALF = [0.5, 0.5, 0.5]


def build_smol_llava(language: Path, seed: int) -> tuple[LlavaForConditionalGeneration, Any]:
    """SmolLM2 in a LLaVA with the vision tower of tiny-llava and an untrained projector.

    Args:
        language: Folder of SmolLM2-135M-Instruct.
        seed: Of the projector and of the additions.

    Returns:
        The model with additions that change nothing yet, and its processor.
    """
    torch.manual_seed(seed)
    tokenizer = _tokenizer(language)
    plain: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    tower: Any = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "tiny-llava")
    text = plain.config
    text.bos_token_id = tokenizer.bos_token_id
    text.vocab_size = len(tokenizer)
    config = LlavaConfig(
        vision_config=tower.config.vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    parts: Any = model.model
    # The new token gets the row of one that no text has, so that it is never generated.
    rows = plain.get_input_embeddings().weight.detach()
    words = torch.cat([rows, rows[[tokenizer.convert_tokens_to_ids(UNUSED)]]])
    weights = {**plain.model.state_dict(), "embed_tokens.weight": words}
    parts.language_model.load_state_dict(weights)
    model.tie_weights()
    parts.vision_tower.load_state_dict(tower.model.vision_tower.state_dict())
    assert tower.config.vision_config.hidden_size == VISION_WIDTH
    add_lora(parts.language_model)
    return model, _processor(tokenizer)


def add_lora(language_model: nn.Module) -> None:
    """Put low-rank additions into every linear layer of the language model; nothing else trains."""
    inject_adapter_in_model(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS), language_model
    )


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: tower, projector and additions, by name."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if "language_model" not in name or "lora_" in name
    }


def save_additions(model: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """Write what training changed, in bfloat16."""
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in trained_weights(model).items()
    }
    save_file(weights, path, {"facts": json.dumps(facts)})


def load_additions(model: nn.Module, path: Path) -> None:
    """Read what `save_additions` wrote into a model of `build_smol_llava`."""
    own = trained_weights(model)
    saved = load_file(path)
    assert own.keys() == saved.keys()
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])


def use_additions(model: nn.Module, on: bool) -> None:
    """Switch the additions on or off; without them the language model is the plain one."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(on)


def merged(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The same function with the additions in the weights, without LoRA layers. In place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    return model


def _tokenizer(language: Path) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.bos_token = BOS
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    return tokenizer


def _processor(tokenizer: Any) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE, image_mean=_HALF, image_std=_HALF
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the model drops
        image_token=IMAGE_TOKEN,
    )
