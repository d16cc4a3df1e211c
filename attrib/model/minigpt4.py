"""Assemble MiniGPT-4 from its published parts, as one Hugging Face folder.

MiniGPT-4 was published as a linear layer between a Vicuna language model and the vision tower and
Q-Former of a BLIP-2 (Zhu et al. 2023, https://arxiv.org/abs/2304.10592), the architecture of
`Blip2ForConditionalGeneration` with a Llama text model. One difference to the original remains: as
in every BLIP-2 of transformers, visual tokens precede the beginning-of-sequence token.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    LlamaConfig,
    PreTrainedConfig,
)

from attrib.errors import SetupError

VISION_PARTS = ("vision_model.", "qformer.", "query_tokens")


def assemble_minigpt4(
    llm: Path, blip2: Path, projection: Path, out: Path, dtype: torch.dtype = torch.float16
) -> Path:
    """Write a folder that `attrib.load` reads, one shard in memory at a time.

    Args:
        llm: Folder of the language model (vicuna-7b), with safetensors or pickled tensors.
        blip2: Folder of a BLIP-2 with MiniGPT-4's vision tower and Q-Former
            (Salesforce/blip2-flan-t5-xxl).
        projection: The published linear layer, `prerained_minigpt4_7b.pth`.
        out: The new folder; must not hold a model.
        dtype: Dtype of the stored weights.

    Returns:
        `out`.

    Raises:
        SetupError: A part is missing, or does not fit the others.
    """
    if (out / "config.json").exists():
        raise SetupError(f"{out}: there is a model already; give another folder")
    text, donor = _config_of(llm, LlamaConfig), _config_of(blip2, Blip2Config)
    processor = Blip2Processor(
        AutoImageProcessor.from_pretrained(blip2, backend="pil"),
        AutoTokenizer.from_pretrained(llm),
        donor.num_query_tokens,
    )
    config = _merged_config(
        text, donor, processor.tokenizer.convert_tokens_to_ids("<image>"), dtype
    )
    with torch.device("meta"):
        missing = {
            name: value.shape
            for name, value in Blip2ForConditionalGeneration(config).state_dict().items()
        }
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    for number, shard in enumerate(
        _shards(llm, blip2, projection, config.get_text_config().vocab_size)
    ):
        for name, value in shard.items():
            if missing.pop(name, None) != value.shape:
                raise SetupError(
                    f"{name} {tuple(value.shape)} is no weight of the model: the parts do not match"
                )
        file = f"model-{number:05d}.safetensors"
        save_file(
            {k: v.to(dtype).contiguous() for k, v in shard.items()}, out / file, {"format": "pt"}
        )
        index |= dict.fromkeys(shard, file)
    if missing:
        raise SetupError(f"the parts lack {len(missing)} weights, {min(missing)} among them")
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    )
    processor.save_pretrained(out)
    config.save_pretrained(out)  # last: a config marks a complete folder
    return out


def _config_of(folder: Path, kind: type[PreTrainedConfig]) -> Any:
    if not (folder / "config.json").is_file():
        raise SetupError(f"{folder}: no config.json; give the folder of a downloaded model")
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, kind):
        raise SetupError(f"{folder}: {config.model_type} is not {kind.model_type}")
    return config


def _merged_config(
    text: LlamaConfig, donor: Blip2Config, image_token_id: int, dtype: torch.dtype
) -> Blip2Config:
    text.vocab_size = max(text.vocab_size, image_token_id + 1)
    config = Blip2Config(
        vision_config=donor.vision_config,
        qformer_config=donor.qformer_config,
        text_config=text,
        num_query_tokens=donor.num_query_tokens,
        image_token_index=image_token_id,
    )
    config.use_decoder_only_language_model = True
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.dtype = dtype
    return config


def _shards(
    llm: Path, blip2: Path, projection: Path, vocab_size: int
) -> Iterator[dict[str, Tensor]]:
    for shard in _read(llm):
        # Old Llama checkpoints hold buffers that are computed now.
        named = {f"language_model.{k}": v for k, v in shard.items() if not k.endswith("inv_freq")}
        yield {name: _resized(name, value, vocab_size) for name, value in named.items()}
    for shard in _read(blip2):
        if kept := {name: value for name, value in shard.items() if name.startswith(VISION_PARTS)}:
            yield kept
    linear = torch.load(projection, map_location="cpu", weights_only=True)
    linear = linear.get("model", linear)
    if "llama_proj.weight" not in linear:
        raise SetupError(
            f"{projection}: no llama_proj.weight; give MiniGPT-4's prerained_minigpt4_7b.pth"
        )
    yield {
        f"language_projection.{part}": linear[f"llama_proj.{part}"] for part in ("weight", "bias")
    }


def _resized(name: str, value: Tensor, vocab_size: int) -> Tensor:
    """Add zero rows to embeddings for the image token, whose embedding is always replaced."""
    if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return value
    return torch.cat([value, value.new_zeros(vocab_size - len(value), value.shape[1])])


def _read(folder: Path) -> Iterator[dict[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        yield from (load_file(file) for file in files)
        return
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise SetupError(f"{folder}: neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        yield torch.load(file, map_location="cpu", weights_only=True)
