"""What a sweep over layers and sigmas costs, before it is run: work in forward passes, and memory.

Work is that of the decoder layers, which a forward pass runs once on all positions. A layer counts
by its positions; their attention to keys in front is not counted apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from attrib.analyses.sensitivity import (
    ROWS_OF_LOGITS,
    SIGMAS,
    checked,
    copies_at_once,
    nothing_to_perturb,
)
from attrib.errors import AttribError
from attrib.forward.noise import Modality, perturbed_positions
from attrib.forward.suffix import CleanPass, Suffix, build_suffix, clean_pass, is_sliceable
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

# Of a layer's work, what keys and values take: two of its square matrices, queries and outputs
# being two more, and an MLP that is four times as wide eight.
KEYS_ALONE = 2 / 12
STREAMS = 3  # what a position takes beside a module's own numbers: the stream, its norm, the sum
LOGITS = 7  # rows as wide as the vocabulary, in float64, that a divergence takes


@dataclass(frozen=True)
class SweepCost:
    """What a sweep over one batch takes.

    Attributes:
        copies: Disturbed examples to run.
        at_once: How many of them run together.
        share: Of an example's positions, how many are run again.
        forwards: The work, in forward passes over the batch.
        test: Further forward passes, once per model and kind of batch: whether running that share
            gives what a whole pass gives.
        naive: Forward passes over the batch that writing the noise with hooks would take.
        memory: Bytes at the height, the model's weights not counted; an estimate.
    """

    copies: int
    at_once: int
    share: float
    forwards: float
    test: float
    naive: int
    memory: int


@torch.no_grad()
def sweep_cost(
    vlm: VLM,
    batch: Batch,
    modality: Modality = "text",
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 1,
    *,
    layers: Iterable[int] | None = None,
    exclude_last: bool = False,
    max_copies: int | None = None,
) -> SweepCost:
    """What `sensitivity` of these arguments takes, at the price of a forward pass and the test.

    Raises:
        AttribError: As `sensitivity`.
    """
    chosen = set(checked(vlm, modality, sigmas, "std", draws, layers, max_copies))
    at = perturbed_positions(batch, modality, exclude_last)
    if not at.any():
        raise AttribError(nothing_to_perturb(modality))
    clean = clean_pass(vlm, batch)
    suffix = build_suffix(clean, int(at.any(0).int().argmax()))
    share = suffix.num_pos / at.shape[1]
    each = draws * sum(sigma > 0 for sigma in sigmas)
    disturbed = int(at.any(1).sum())
    per_layer = [each * disturbed * (layer in chosen) for layer in range(vlm.num_layers)]
    copies = sum(per_layer)
    passes = each * sum(_layers_run(suffix, layer) for layer in chosen) / vlm.num_layers
    at_once = min(copies, copies_at_once(suffix, max_copies))
    return SweepCost(
        copies=copies,
        at_once=at_once,
        share=share,
        forwards=1 + _keys_in_front(share) + passes * share * disturbed / batch.size,
        test=_test(suffix, share) if is_sliceable(clean) else 0.0,
        naive=1 + each * len(chosen),
        memory=_memory(clean, suffix, at_once, per_layer),
    )


def _keys_in_front(share: float) -> float:
    return KEYS_ALONE * (1 - share)


def _layers_run(suffix: Suffix, layer: int) -> float:
    """How many layers a version runs that is disturbed in `layer`."""
    later = suffix.vlm.num_layers - 1 - layer
    return float(later) if suffix.query is None or not later else later - 1 + KEYS_ALONE


def _test(suffix: Suffix, share: float) -> float:
    """Forward passes of one whole and one cut pass behind layer 0, and of the keys in front."""
    behind = suffix.vlm.num_layers - 1
    whole, part = behind, share * _layers_run(suffix, 0)
    return (whole + part) / suffix.vlm.num_layers + _keys_in_front(share)


def _memory(clean: CleanPass, suffix: Suffix, at_once: int, per_layer: Sequence[int]) -> int:
    """The most that a plain pass, the test of the cut and the sweep itself take, in bytes."""
    vlm, first = clean.vlm, clean.hidden[0]
    d_vocab, item = clean.logits.shape[-1], first.element_size()
    positions = clean.real.numel()
    one_layer = positions * (STREAMS * vlm.d_model + _width(vlm))
    outputs = vlm.num_layers * first.numel()
    kept = [t for pair in suffix.kept.values() for t in (pair.keys, pair.values)]
    states = sum(t.numel() for t in [*suffix.hidden.values(), *kept])
    noise = 2 * suffix.hidden[0].numel() * 4  # in float32
    divergence = min(ROWS_OF_LOGITS, at_once) * d_vocab * LOGITS * 8
    return max(
        (outputs + max(positions * d_vocab, one_layer)) * item,
        (outputs + states + one_layer) * item,
        (states + clean.logits.numel()) * item
        + noise
        + max(_chunk(suffix, at_once, per_layer) * item, divergence),
    )


def _chunk(suffix: Suffix, at_once: int, per_layer: Sequence[int]) -> int:
    """Numbers that disturbed examples which run together take, at the height.

    Args:
        suffix: What is run of them.
        at_once: How many run together.
        per_layer: How many there are that are disturbed in each layer.
    """
    stream, batch = suffix.num_pos * suffix.vlm.d_model, len(suffix.last)
    mlp = suffix.num_pos * _width(suffix.vlm) - 2 * stream
    attention = 4 * stream
    if suffix.kept:
        pair = suffix.kept[0]
        front = pair.keys[0].numel() + pair.values[0].numel()
        # Joined with its own; and copied before, where examples have to be picked.
        attention += front * (2 if batch > 1 else 1) + 2 * stream
    # Who is disturbed behind a layer does not run it; the last layer may have but one query.
    last = min(at_once, sum(per_layer[:-1]))
    whole = last if suffix.query is None else min(at_once, sum(per_layer[:-2]))
    return STREAMS * stream * at_once + max(whole * max(attention, mlp), last * attention)


def _width(vlm: VLM) -> int:
    """Numbers that a layer's matrices make of a position: one of d_model x width makes `width`."""
    return math.ceil(sum(w.numel() for w in vlm.layers[0].parameters()) / vlm.d_model)
