"""Linear layers of half precision multiplied in float32, some rows of the weight at a time.

CPUs without bfloat16 instructions (AVX2) multiply bfloat16 matrices at a fifth of the speed of
float32: 20 against 108 GFLOPS on two cores of an AMD EPYC. A converted piece is small, so that the
memory of the weights stays what it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 1024  # of a weight, converted at a time
_linear = functional.linear


@contextmanager
def float32_linear() -> Iterator[None]:
    """Multiply frozen weights of half precision in float32; results keep their dtype."""
    functional.linear = _apply
    try:
        yield
    finally:
        functional.linear = _linear


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    half = x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
    if (
        not half
        or weight.device.type != "cpu"
        or (weight.requires_grad and torch.is_grad_enabled())
    ):
        return _linear(x, weight, bias)
    out = _Product.apply(x, weight)
    return out if bias is None else out + bias


class _Product(torch.autograd.Function):
    """`x @ weight.T` with a gradient for `x` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        wide = x.float()
        out = x.new_empty(*x.shape[:-1], len(weight))
        for rows in _pieces(weight):
            out[..., rows] = _linear(wide, weight[rows].float())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        wide = gradient.float()
        total = wide.new_zeros(*gradient.shape[:-1], weight.shape[1])
        for rows in _pieces(weight):
            total += wide[..., rows] @ weight[rows].float()
        return total.to(gradient.dtype), None


def _pieces(weight: Tensor) -> Iterator[slice]:
    for start in range(0, len(weight), ROWS):
        yield slice(start, start + ROWS)
