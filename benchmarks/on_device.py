"""Models of a shape that pictures and questions can be given to, and what a GPU spends on them."""

import time

import torch

import attrib
from attrib.model.vlm import VLM
from benchmarks.shapes import LLAVA_7B, PATCH, Shape, random_vlm

SHAPES = {"llava-7b": LLAVA_7B, "small": Shape(side=4, layers=8, width=64, heads=4, vocab=512)}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def asked(shape: Shape, dtype: str, device: str) -> VLM:
    """A random model with a processor for pictures of its size, and words that it knows."""
    vlm = random_vlm(shape, DTYPES[dtype], device)
    processor = attrib.load("tiny-llava").processor
    side = shape.side * PATCH
    processor.patch_size = PATCH
    for name in ("size", "crop_size"):
        setattr(processor.image_processor, name, {"height": side, "width": side})
    vlm.model.config.image_token_id = processor.image_token_id
    vlm.model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return VLM(vlm.model, processor, name=vlm.name)


def now(vlm: VLM) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
    return time.perf_counter()


def reset_peak(vlm: VLM) -> None:
    """Let `peak_mib` count from here on."""
    if vlm.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(vlm.device)


def peak_mib(vlm: VLM) -> float | None:
    """Of the GPU; a CPU's is not measured here."""
    if vlm.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(vlm.device) / 2**20


def device_name(device: str) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device
