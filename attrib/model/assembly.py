"""smol-llava from its parts: a fetched language model, and what was trained and ships.

The folder of smol-llava holds a vision tower, a projector and low-rank additions (LoRA, Hu et al.,
2022), not the language model, SmolLM2-135M-Instruct. When it is loaded, the additions are merged
into SmolLM2's weights: W + scale B A, in float32. The model is then a plain LLaVA: every pass costs
what it costs without additions, and editors change the weights that are used.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaConfig, LlavaProcessor

from attrib.errors import SetupError
from attrib.files import ADDITIONS, language_model_folder, missing_part

SCALE = 2.0  # of a low-rank addition: LoRA's alpha by its rank
BOS = "<|endoftext|>"  # what separates the documents that SmolLM2 was trained on
IMAGE_TOKEN, UNUSED = "<image>", "<reponame>"
DECODER = "model.language_model."
_HALF = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Assembly:
    """A LLaVA of SmolLM2 and of what was trained beside it.

    Attributes:
        language: Folder of SmolLM2.
        additions: File of vision tower, projector and low-rank additions.
    """

    language: Path
    additions: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> "Assembly | None":
        """The parts of a model whose folder has additions; None for all others.

        Raises:
            SetupError: SmolLM2 was not fetched.
        """
        if not (folder / ADDITIONS).is_file():
            return None
        if lacks := missing_part(folder):
            raise SetupError(f"{name}: {lacks}")
        return cls(language_model_folder(), folder / ADDITIONS)

    def weights(self) -> dict[str, Tensor]:
        """All weights of the LLaVA in float32, with the additions merged."""
        weights = decoder_weights(self.language)
        added = {name: value.float() for name, value in load_file(self.additions).items()}
        for name, value in added.items():
            if ".lora_B." in name:
                down = added[name.replace(".lora_B.", ".lora_A.")]
                weights[f"{name.partition('.lora_B.')[0]}.weight"] += SCALE * value @ down
            elif ".lora_A." not in name:
                weights[name] = value
        return weights

    def processor(self, config: LlavaConfig) -> LlavaProcessor:
        """The processor of the LLaVA with this config."""
        return make_processor(read_tokenizer(self.language), config)


def decoder_weights(language: Path) -> dict[str, Tensor]:
    """SmolLM2's weights in float32, by their names in the LLaVA, with a row for the image token.

    That row is one of a token that no text has, so that it is never generated.
    """
    plain = load_file(language / "model.safetensors")
    weights = {name.replace("model.", DECODER, 1): value.float() for name, value in plain.items()}
    unused = AutoTokenizer.from_pretrained(language).convert_tokens_to_ids(UNUSED)
    rows = weights[f"{DECODER}embed_tokens.weight"]
    weights[f"{DECODER}embed_tokens.weight"] = torch.cat([rows, rows[[unused]]])
    return weights


def read_tokenizer(language: Path) -> Any:
    """SmolLM2's tokenizer with a token for the image, and with a BOS token before each text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.bos_token = BOS
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
    )
    return tokenizer


def make_processor(tokenizer: Any, config: LlavaConfig) -> LlavaProcessor:
    """The processor for a tokenizer and the images of a config."""
    vision: Any = config.vision_config
    size = vision.image_size
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size=size, image_mean=_HALF, image_std=_HALF
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token, which the model drops
        image_token=IMAGE_TOKEN,
    )
