"""Gaussian noise that belongs to an example: the same whatever batch, order, shard or device.

One base draw per (seed, example, span, draw), made on the CPU, serves all layers and all sigmas, so
that curves over layers and sigmas differ by these alone.
"""

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.model.batch import Batch

Unit = Literal["std", "abs"]
NoisySpan = Literal["visual", "text"]


def example_ids(batch: Batch) -> tuple[str, ...]:
    """The names of the examples, or where they have none, a fingerprint of their tokens."""
    return batch.ids or tuple(
        _digest(ids[real].tolist())
        for ids, real in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"].bool(), strict=True
        )
    )


def base_noise(
    batch: Batch, span: NoisySpan, d_model: int, *, seed: int, draw: int = 0
) -> Float[Tensor, "batch pos d_model"]:
    """Standard normal noise at the positions of a span, zero elsewhere; float32, on the CPU.

    An example's noise depends on its name, the span, `seed` and `draw`, and is laid out along the
    span's positions: padding does not matter.
    """
    at = batch[span].cpu()
    noise = torch.zeros(*at.shape, d_model)
    for row, (here, name) in enumerate(zip(at, example_ids(batch), strict=True)):
        key = int(_digest([seed, name, span, draw])[:15], 16)
        generator = torch.Generator().manual_seed(key)
        noise[row, here] = torch.randn(int(here.sum()), d_model, generator=generator)
    return noise


def _digest(parts: list) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
