"""Cost of a sensitivity sweep before it runs: compute in forward passes, and memory.

Compute is that of the decoder layers, which a forward pass runs once on all positions. A layer's
compute is proportional to its positions; attention to the keys of earlier positions is not counted.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from attrib.analyses.sensitivity import (
    ROWS_OF_LOGITS,
    SIGMAS,
    check_arguments,
    clean_pass,
    nothing_to_perturb,
)
from attrib.errors import AttribError
from attrib.forward.memory import STREAMS, chunk_elements, copies_at_once, layer_width
from attrib.forward.noise import perturbed_positions
from attrib.forward.replay import CleanPass
from attrib.forward.suffix import Suffix, build_suffix, is_sliceable
from attrib.model.batch import Batch
from attrib.model.logits import kept_positions
from attrib.model.vlm import VLM
from attrib.vocabulary import NoiseModality

# Share of a layer's compute for keys and values alone: of its square matrices, keys and values are
# two, queries and outputs two more, and an MLP of four times the width counts as eight.
KV_SHARE = 2 / 12
LOGITS = 7  # rows as wide as the vocabulary, in float64, that a divergence needs


@dataclass(frozen=True)
class SweepCost:
    """Cost of a sweep over one batch.

    Attributes:
        copies: Perturbed copies of examples to run.
        at_once: How many of them run together.
        share: Share of an example's positions that runs again.
        forwards: Compute, in forward passes over the batch.
        test: Further forward passes, once per model and kind of batch, to verify the suffix.
        naive: Forward passes over the batch that noise written with hooks would take.
        memory: Peak bytes without the model's weights; an estimate.
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
    modality: NoiseModality = "text",
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 1,
    *,
    layers: Iterable[int] | None = None,
    exclude_last: bool = False,
    max_copies: int | None = None,
) -> SweepCost:
    """Cost of `sensitivity` with these arguments; takes a forward pass and the verification.

    Raises:
        AttribError: As `sensitivity`.
    """
    chosen = set(check_arguments(vlm, modality, sigmas, "std", draws, layers, max_copies))
    at = perturbed_positions(batch, modality, exclude_last)
    if not at.any():
        raise AttribError(nothing_to_perturb(modality))
    clean = clean_pass(vlm, batch)
    suffix = build_suffix(clean, int(at.any(0).int().argmax()))
    share = suffix.num_pos / at.shape[1]
    each = draws * sum(sigma > 0 for sigma in sigmas)
    perturbed = int(at.any(1).sum())
    per_layer = [each * perturbed * (layer in chosen) for layer in range(vlm.num_layers)]
    passes = each * sum(_layers_run(suffix, layer) for layer in chosen) / vlm.num_layers
    at_once = min(sum(per_layer), copies_at_once(suffix, max_copies))
    return SweepCost(
        copies=sum(per_layer),
        at_once=at_once,
        share=share,
        forwards=1 + KV_SHARE * (1 - share) + passes * share * perturbed / batch.size,
        test=_verification(suffix, share) if is_sliceable(clean) else 0.0,
        naive=1 + each * len(chosen),
        memory=_memory(clean, suffix, at_once, per_layer),
    )


def _layers_run(suffix: Suffix, layer: int) -> float:
    """Number of layers that run for a copy perturbed in `layer`."""
    later = suffix.vlm.num_layers - 1 - layer
    return float(later) if suffix.query is None or not later else later - 1 + KV_SHARE


def _verification(suffix: Suffix, share: float) -> float:
    """Forward passes of a whole and a suffix replay after layer 0, and of the prefix keys."""
    whole, part = suffix.vlm.num_layers - 1, share * _layers_run(suffix, 0)
    return (whole + part) / suffix.vlm.num_layers + KV_SHARE * (1 - share)


def _memory(clean: CleanPass, suffix: Suffix, at_once: int, per_layer: Sequence[int]) -> int:
    """Peak bytes of a plain pass, the verification and the sweep, whichever needs most."""
    vlm, first = clean.vlm, clean.hidden[0]
    d_vocab, item = clean.logits.shape[-1], first.element_size()
    positions = clean.real.numel()
    kept = kept_positions(vlm.model, vlm.components.decoder, clean.last, clean.real.shape[1])
    unembedded = len(clean.last) * kept
    one_layer = positions * (STREAMS * vlm.d_model + layer_width(vlm))
    outputs = vlm.num_layers * first.numel()
    prefix = [t for kv in suffix.prefix.values() for t in (kv.keys, kv.values)]
    states = sum(t.numel() for t in [*suffix.hidden.values(), *prefix])
    noise = 2 * suffix.hidden[0].numel() * 4  # in float32
    divergence = min(ROWS_OF_LOGITS, at_once) * d_vocab * LOGITS * 8
    return max(
        (outputs + max(unembedded * d_vocab, one_layer)) * item,
        (outputs + states + one_layer) * item,
        (states + clean.logits.numel()) * item
        + noise
        + max(chunk_elements(suffix, at_once, per_layer) * item, divergence),
    )


@torch.no_grad()
def seconds_per_pass(vlm: VLM, batch: Batch) -> float:
    """Seconds of a forward pass: the faster of two, since the first one warms up."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        vlm.logits(batch)[:, -1, 0].tolist()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds)
