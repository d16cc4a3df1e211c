"""Dtypes: which one a model runs in, how far it may round, and unembedding in float32.

Models mix dtypes: transformers keeps the query tokens of the BLIP family in float32, and quantised
layers hold integers. Results in half precision are computed from the model's own states, but what
follows the last layer is in float32 whatever the model runs in.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from attrib.model.devices import execution_device, float_copy, loaded
from attrib.model.wrapped import eager

# Largest error, relative to the largest value, of the same computation done in two ways: of one
# step (a norm, a product with a matrix), and of a whole forward pass with other kernels, as after
# padding. Honest models stay below a third of it; a wrong computation is off by about 1.
ONE_STEP = {
    torch.float64: 1e-9,
    torch.float32: 5e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
WHOLE_PASS = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
# Models that round activations to 8 bits by a scale of the whole batch differ by 1.4 %.
QUANTISED_PASS = WHOLE_PASS[torch.bfloat16]
CHUNK = 2**24  # elements of the output embedding in float32 at a time: 64 MiB


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype is narrower than float32."""
    return widened(dtype) != dtype


def widened(dtype: torch.dtype) -> torch.dtype:
    """Float32, or the dtype itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def main_dtype(parameters: Iterable[Tensor]) -> torch.dtype:
    """The dtype of most elements that are floating-point numbers of 16 bits or more.

    Float32 if there are none. Integers and numbers of 8 bits are packed weights: what they are
    multiplied with has the dtype of the norms beside them.
    """
    counts: Counter[torch.dtype] = Counter()
    for one in parameters:
        if one.is_floating_point() and one.element_size() > 1:
            counts[one.dtype] += one.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def pixel_dtype(model: nn.Module, decoder: nn.Module) -> torch.dtype:
    """The dtype of most weights outside the decoder, where pixels go."""
    inside = {id(weight) for weight in decoder.parameters()}
    return main_dtype(weight for weight in model.parameters() if id(weight) not in inside)


@eager()
def unembed(
    norm: nn.Module,
    head: nn.Linear,
    h: Float[Tensor, "*rest d_model"],
    between: Callable[[Tensor], Tensor],
) -> Float[Tensor, "*rest d_vocab"]:
    """The head's output for hidden states, in float32 or wider, bit-equal to its own in float32.

    `between` is applied to the normed states.
    """
    if not is_half(head.weight.dtype):
        return head(between(norm(h))).to(h.device)
    with loaded(head):
        normed = between(normalized(norm, h)).to(head.weight.device)
        parts = [linear(normed, weight, bias) for weight, bias in _chunks(head, normed.dtype)]
        return torch.cat(parts, -1).to(h.device)


def normalized(
    norm: nn.Module, h: Float[Tensor, "*rest d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """The final norm of hidden states in float32, or in their wider dtype, on the norm's device."""
    if not is_half(h.dtype) and main_dtype(norm.parameters()) == h.dtype:
        return norm(h)
    return float_copy(norm)(h.float().to(execution_device(norm)))


def token_directions(
    head: nn.Linear, tokens: Int[Tensor, "*rest"]
) -> tuple[Float[Tensor, "*rest d_model"], Float[Tensor, "*rest"]]:
    """Rows of the output embedding for some tokens, and their biases, in float32 or wider."""
    with loaded(head):
        at = tokens.to(head.weight.device)
        weight = head.weight[at].to(widened(head.weight.dtype))
        if head.bias is None:
            return weight, weight.new_zeros(weight.shape[:-1])
        return weight, head.bias[at].to(weight.dtype)


def log_normalizer(
    head: nn.Linear,
    normed: Float[Tensor, "*rest d_model"],
    *,
    bias: bool = True,
    scale: float = 1.0,
) -> Float[Tensor, "*rest"]:
    """Logarithm of the sum of exp(scale * output of the head), in float32 or wider."""
    with loaded(head):
        here = normed.to(head.weight.device)
        parts = [
            (scale * linear(here, weight, offset if bias else None)).logsumexp(-1)
            for weight, offset in _chunks(head, here.dtype, here[..., 0].numel())
        ]
        return torch.stack(parts).logsumexp(0).to(normed.device)


def _chunks(
    head: nn.Linear, dtype: torch.dtype, states: int = 1
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The output embedding in `dtype`, some rows at a time, as many as `states` outputs allow.

    A whole copy, or logits of the whole vocabulary, may not fit.
    """
    rows = max(1, CHUNK // max(head.weight.shape[1], states))
    for start in range(0, len(head.weight), rows):
        some = slice(start, start + rows)
        bias = None if head.bias is None else head.bias[some].to(dtype)
        yield head.weight[some].to(dtype), bias
