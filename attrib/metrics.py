"""Metrics: logits, states or answers in, one number per example or state out."""

import re
import unicodedata
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def kl(
    clean: Float[Tensor, "batch pos d_vocab"],
    perturbed: Float[Tensor, "batch pos d_vocab"],
    at: Bool[Tensor, "batch pos"],
) -> Float[Tensor, " batch"]:
    """KL(clean || perturbed) of the next-token distributions, in nats.

    Computed from log-softmax in float32 or better: half precision is off by a third of a per cent.

    Args:
        clean: logits of the untouched run.
        perturbed: logits of the other run.
        at: one position per example, such as `batch.spans["last"]`.
    """
    p, q = (log_probabilities(one_position(x, at)) for x in (clean, perturbed))
    # A sum of rounded terms may come out just below zero, where no divergence is.
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def half_cosine_distance(
    a: Float[Tensor, "*#rest d_model"], change: Float[Tensor, "*#rest d_model"]
) -> Float[Tensor, "..."]:
    """(1 - cos(a, a + change)) / 2, to full precision however small the change is."""
    squared = change.square().sum(-1)
    before, after = a.norm(dim=-1), (a + change).norm(dim=-1)
    tiny = torch.finfo(a.dtype).tiny
    longer = (2 * (a * change).sum(-1) + squared) / (before + after).clamp(min=tiny)
    return ((squared - longer.square()) / (4 * before * after).clamp(min=tiny)).clamp(0, 1)


def token_accuracy(
    logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"]
) -> Float[Tensor, " batch"]:
    """Share of an example's answer tokens that are the argmax, teacher-forced.

    Args:
        logits: of the whole sequence.
        labels: the token that follows each position, -100 where none is asked; an example
            without any has no accuracy: NaN.
    """
    asked = labels != -100
    right = (logits.argmax(-1) == labels) & asked
    return right.sum(1) / asked.sum(1)


def exact_match(answers: Sequence[str], targets: Sequence[str]) -> Bool[Tensor, " batch"]:
    """Whether each answer is its target once both are normalised (see `normalise`)."""
    pairs = zip(answers, targets, strict=True)
    return torch.tensor([normalise(a) == normalise(t) for a, t in pairs], dtype=torch.bool)


def normalise(answer: str) -> str:
    """An answer without what does not matter: case, spacing, marks at its ends, wide letters."""
    folded = unicodedata.normalize("NFKC", answer).casefold()
    return re.sub(r"\s+", " ", folded).strip(" \"'`.,;:!?")


def log_probabilities(
    logits: Float[Tensor, "*rest d_vocab"],
) -> Float[Tensor, "*rest d_vocab"]:
    """Log-softmax over the vocabulary, in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def one_position(
    values: Float[Tensor, "batch pos axis"], at: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch axis"]:
    """The values at the one position per example where `at` holds."""
    if not bool((at.sum(1) == 1).all()):
        raise ValueError(
            f"expected one position per example, got {at.sum(1).tolist()}: "
            'use a span of single positions such as batch.spans["last"]'
        )
    return values[at]
