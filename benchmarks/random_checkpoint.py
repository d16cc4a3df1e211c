"""A checkpoint with random weights in the layout of a download, written one shard at a time."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

SHARD_BYTES = 2**29  # safetensors copies a shard once when it writes it
# Checkpoints of LLaVA keep the names of its first implementation.
PUBLISHED_NAMES = {
    "llava": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    }
}


def write_checkpoint(
    config: PreTrainedConfig,
    processor: Any,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write configuration, processor and seeded random weights; returns the bytes of the weights.

    One shard of weights is in memory at a time, twice while it is written. The configuration is
    written last: it marks a complete folder.
    """
    shapes = weight_shapes(config)
    renamed = PUBLISHED_NAMES.get(config.model_type, {})
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes, dtype.itemsize, shard_bytes)):
        file = f"model-{number + 1:05d}.safetensors"
        shard = {
            _renamed(name, renamed): random_weight(name, shapes[name], dtype, seed)
            for name in names
        }
        save_file(shard, out / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = dtype.itemsize * sum(map(math.prod, shapes.values()))
    table = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(table, indent=1))
    processor.save_pretrained(out)
    config.dtype = dtype
    config.save_pretrained(out)
    return total


def weight_shapes(config: PreTrainedConfig) -> dict[str, torch.Size]:
    """The shape of each stored weight, tied ones once, without creating any."""
    auto: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(config)
    stored = model.state_dict(keep_vars=True)
    parameters = {name: p.shape for name, p in model.named_parameters()}  # tied ones come once
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(parameters)
    return {name: value.shape for name, value in stored.items() if name not in tied}


def random_weight(name: str, shape: torch.Size, dtype: torch.dtype, seed: int) -> Tensor:
    """One weight, from a generator of its own."""
    generator = torch.Generator().manual_seed(hash_of(name) ^ seed)
    return fill_(torch.empty(shape, dtype=dtype), name, generator)


def hash_of(name: str) -> int:
    """A number that a name has in every process."""
    return int.from_bytes(name.encode(), "little") % (2**61 - 1)


def _shards(
    shapes: Mapping[str, torch.Size], itemsize: int, shard_bytes: int
) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + itemsize * math.prod(shape) > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += itemsize * math.prod(shape)
    yield names


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for new, published in prefixes.items():
        if name.startswith(new):
            return published + name.removeprefix(new)
    return name


def random_model(
    config: PreTrainedConfig, dtype: torch.dtype, device: str, seed: int = 0
) -> PreTrainedModel:
    """The model of a configuration with random weights, created on its device."""
    auto: Any = AutoModelForImageTextToText
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = auto.from_config(config, dtype=dtype)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            fill_(weight, name, torch.Generator(weight.device).manual_seed(hash_of(name) ^ seed))
    return model.eval().requires_grad_(False)


def fill_(value: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Fill a weight so that it keeps the size of what passes through it."""
    if "norm" in name.lower() and name.endswith("weight"):
        return value.fill_(1.0)
    std = 0.02 if value.ndim < 2 else 1 / math.sqrt(math.prod(value.shape[1:]))
    return value.normal_(std=std, generator=generator)
