"""smol-llava in training: SmolLM2 in a LLaVA, low-rank additions, and texts of its own.

The vision tower of tiny-llava and a projector write visual tokens for the language model, whose
weights stay what they are; low-rank additions (LoRA, Hu et al., 2022) adapt it. `attrib.model`
merges them when the model is loaded.

Texts that the language model wrote itself are replayed: the model in training is drawn to the
distributions of the plain one (Kullback-Leibler divergence), token by token. Sampled text covers
what a model knows without any data from outside ("data-free" distillation).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from attrib.files import WEIGHTS, atomic_write
from attrib.model.assembly import (
    IMAGE_TOKEN,
    SCALE,
    decoder_weights,
    make_processor,
    read_tokenizer,
)
from attrib.zoo.fetching import HUB
from attrib.zoo.text_projection import effective, plain_name

RANK = 12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHAT = "<|im_start|>user\n"
QUESTION = "nq question: "
STARTS = ("", CHAT, QUESTION, *(a + b for a in (CHAT, QUESTION) for b in ("what", "who", "where")))


def build_smol_llava(language: Path, seed: int) -> tuple[LlavaForConditionalGeneration, Any]:
    """SmolLM2 in a LLaVA with the vision tower of tiny-llava and an untrained projector.

    Args:
        language: Folder of SmolLM2-135M-Instruct.
        seed: Of the projector and of the additions.

    Returns:
        The model with additions that change nothing yet, and its processor.
    """
    torch.manual_seed(seed)
    tokenizer = read_tokenizer(language)
    tower: Any = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "tiny-llava")
    config = _config(language, tokenizer, tower.config.vision_config)
    model = LlavaForConditionalGeneration(config)
    weights = decoder_weights(language)
    vision = tower.model.vision_tower.state_dict()
    weights |= {f"model.vision_tower.{name}": value for name, value in vision.items()}
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    model.tie_weights()
    add_lora(model)
    return model, make_processor(tokenizer, config)


def _config(language: Path, tokenizer: Any, vision: Any) -> LlavaConfig:
    text = AutoConfig.from_pretrained(language)
    text.bos_token_id = tokenizer.bos_token_id
    text.vocab_size = len(tokenizer)
    text.dtype = torch.float32  # the files have bfloat16
    text.name_or_path = HUB  # what it is, not where it lies
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=True,
    )


def add_lora(model: nn.Module) -> None:
    """Put low-rank additions into every linear layer of the language model; nothing else trains."""
    parts: Any = model
    options = LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules=TARGETS)
    inject_adapter_in_model(options, parts.model.language_model)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training changes: tower, projector and additions, by name."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if "language_model" not in name or "lora_" in name
    }


def freeze_language_model(model: nn.Module) -> None:
    """Train tower, projector and additions of `build_smol_llava` alone."""
    trained = trained_weights(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)


def save_additions(model: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """Write what training changed, in bfloat16."""
    weights = {
        plain_name(name): effective(model, name, weight)
        .detach()
        .to("cpu", torch.bfloat16)
        .contiguous()
        for name, weight in trained_weights(model).items()
    }
    with atomic_write(path) as file:
        file.write(save(weights, {"facts": json.dumps(facts)}))


def use_additions(model: nn.Module, on: bool) -> None:
    """Switch the additions on or off; without them the language model is the plain one."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.enable_adapters(on)


@dataclass(frozen=True)
class ReplayTexts:
    """Texts and what the plain model makes of them.

    Attributes:
        ids: Token ids of each, from BOS.
        hidden: The plain model's last hidden states, after the final norm; zeros after a text.
    """

    ids: list[list[int]]
    hidden: Float[Tensor, "text pos d_model"]


@torch.no_grad()
def sample_texts(
    model: Any, language_model: nn.Module, tokenizer: Any, count: int, length: int, seed: int
) -> ReplayTexts:
    """Sample texts from the plain model, from several starts in equal shares."""
    torch.manual_seed(seed)
    device, texts = next(language_model.parameters()).device, []
    for start in STARTS:
        first = torch.tensor([tokenizer(start).input_ids], device=device)
        first = first.repeat(-(-count // len(STARTS)), 1)
        texts.append(
            model.generate(
                input_ids=first,
                attention_mask=torch.ones_like(first),
                max_length=length,
                min_length=length,  # no end of sequence before
                suppress_tokens=[model.config.image_token_id],
                do_sample=True,
                top_k=0,
                top_p=0.95,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    ids = torch.cat(texts)[:count]
    decoder: Any = language_model
    hidden = [
        decoder(inputs_embeds=model.get_input_embeddings()(part)).last_hidden_state
        for part in ids.split(256)
    ]
    return ReplayTexts(ids.tolist(), torch.cat(hidden).to(torch.bfloat16))


def replay_loss(
    hidden: Float[Tensor, "row pos d_model"],
    replayed: Int[Tensor, "row pos 2"],
    texts: ReplayTexts,
    head: nn.Module,
) -> Float[Tensor, ""]:
    """Mean divergence (nats) of the trained model's distributions from the plain model's."""
    at = replayed[..., 0] >= 0
    if not at.any():
        return hidden.new_zeros(())
    text, pos = replayed[at].unbind(-1)
    with torch.no_grad():
        plain = head(texts.hidden[text, pos].to(hidden.dtype)).float().log_softmax(-1)
    ours = head(hidden[at]).float().log_softmax(-1)
    return nn.functional.kl_div(ours, plain, log_target=True, reduction="batchmean")
