"""Where a disturbed batch may be cut: which positions are run again, and which are kept.

Where attention looks ahead (a prefix seen from both sides, blocks of image tokens), the mask tells
how far, and the suffix starts where nothing in front of it looks in. Layers that cannot be cut up
(no cache, unknown arguments) are run whole. That a cut pass equals a whole one is tested once per
model and kind of batch, on disturbed states.
"""

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.forward.hooks import capture, read
from attrib.forward.kv_prefix import keys_values
from attrib.forward.layer_call import cut, is_known, kinds, one_query, seen_keys
from attrib.forward.replay import Captured, rerun
from attrib.forward.residual import pick
from attrib.forward.suffix import Suffix
from attrib.memory import is_out_of_memory
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

logger = logging.getLogger("attrib")
# Fewer positions saved than this are not worth a mask: without one, attention has faster kernels.
WORTH_CUTTING = 0.1
_HOLDS: WeakKeyDictionary[VLM, dict[Any, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class CleanPass:
    """An undisturbed forward pass over a batch.

    Attributes:
        vlm: The model.
        captured: How it called its layers.
        hidden: Every layer's output, "batch pos d_model".
        logits: Of the next token, at the last prompt token.
        last: The last prompt token's position in each example.
        real: Which positions are not padding.
    """

    vlm: VLM
    captured: Captured
    hidden: dict[int, Tensor]
    logits: Float[Tensor, "batch d_vocab"]
    last: Int[Tensor, " batch"]
    real: Bool[Tensor, "batch pos"]


@torch.no_grad()
def clean_pass(vlm: VLM, batch: Batch) -> CleanPass:
    """Run a batch, keeping what resuming from any layer takes."""
    with capture(vlm) as captured, read(vlm) as hidden:
        logits = vlm.logits(batch)
    last, real = batch["last"], batch.inputs["attention_mask"].bool()
    return CleanPass(vlm, captured, hidden, logits[last], last.int().argmax(1), real)


def can_be_cut(clean: CleanPass) -> bool:
    """Whether all that the layers were given can be shortened; if so, a test has the last word."""
    return all(map(is_known, clean.captured.calls.values()))


def suffix_of(clean: CleanPass, first: int) -> Suffix:
    """What to run of a batch that is disturbed at position `first` and later."""
    if not can_be_cut(clean):
        return _whole(clean)
    calls = list(clean.captured.calls.values())
    start = _nothing_looks_in(clean, first)
    if start < WORTH_CUTTING * clean.real.shape[1]:
        start = 0
    config = getattr(clean.vlm.components.decoder, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    kind = (start > 0, attention, tuple(map(kinds, calls)))
    holds = _HOLDS.setdefault(clean.vlm, {})
    if kind not in holds:
        if not clean.logits.isfinite().all():
            return _whole(clean)  # nothing can be compared
        holds[kind] = _equals_whole(clean, start)
    return _cut(clean, start) if holds[kind] else _whole(clean)


def _whole(clean: CleanPass) -> Suffix:
    """All positions, every layer run as it is."""
    pairs = {i: pair for i, pair in clean.captured.inputs.items() if i > 0}
    calls = clean.captured.calls
    return Suffix(clean.vlm, 0, clean.hidden, pairs, calls, {}, None, clean.last)


def _cut(clean: CleanPass, start: int) -> Suffix:
    """The positions from `start` on, and in the last layer one query.

    Raises:
        NoKeys: Some layer has no keys and values to keep.
    """
    vlm, like, num_pos = clean.vlm, clean.logits, clean.real.shape[1]
    calls, entering = clean.captured.calls, clean.captured.inputs
    kept = {}
    for i, call in calls.items() if start else ():
        h = entering[i][1] if i in entering else clean.hidden[i - 1]
        front = cut(call, 0, start, num_pos, like)
        kept[i] = keys_values(vlm.layers[i], h[:, :start], front)

    def suffix(h: Tensor) -> Tensor:
        return h[:, start:].clone() if start else h  # a view would keep the front in memory

    query = one_query(calls[vlm.num_layers - 1], clean.last.tolist(), num_pos, like)
    return Suffix(
        vlm,
        start,
        {i: suffix(h) for i, h in clean.hidden.items()},
        {i: (suffix(a), suffix(b)) for i, (a, b) in entering.items() if i > 0},
        {i: cut(call, start, num_pos, num_pos, like) for i, call in calls.items()},
        kept,
        query,
        clean.last - start,
    )


def _nothing_looks_in(clean: CleanPass, first: int) -> int:
    """The last position up to `first` that no real position in front of it attends to or past."""
    num_pos = clean.real.shape[1]
    index = torch.arange(num_pos, device=clean.real.device)
    furthest = index.clone()  # the last key that a query sees; at the least its own
    masks = {id(call[1].get("attention_mask")): call for call in clean.captured.calls.values()}
    for call in masks.values():
        seen = seen_keys(call, num_pos, clean.logits).any(1) & clean.real[:, :, None]
        last_seen = torch.where(seen.any(0), index, -1).amax(-1)
        furthest = torch.maximum(furthest, last_seen.to(furthest.device))
    ahead = furthest.cummax(0).values.tolist()
    return next(p for p in range(first, -1, -1) if p == 0 or ahead[p - 1] < p)


def _equals_whole(clean: CleanPass, start: int) -> bool:
    """Whether a cut pass over states disturbed from `start` on gives what a whole one gives."""
    vlm, h = clean.vlm, clean.hidden[0]
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    probe = h.clone()
    probe[:, start:] += (noise[:, start:].to(h.device) * h.float().std()).to(h.dtype)
    rows = torch.arange(len(h), device=h.device)
    try:
        quick = _cut(clean, start).run([0] * len(h), rows, lambda some: probe[some, start:])
    except Exception as error:  # whatever a layer does that was never made for this
        if is_out_of_memory(error):
            raise
        logger.info("%s: layers are run whole (%s)", vlm.name, error)
        return False
    slow = pick(rerun(vlm, clean.captured, 0, probe), clean.last).double()
    effect = (slow - pick(clean.hidden[vlm.num_layers - 1], clean.last).double()).abs().max()
    rounding = 1000 * torch.finfo(h.dtype).eps * slow.abs().max()
    error = (quick.double() - slow).abs().max()
    # In half precision rounding is no limit at all: there, the effect of the disturbance is.
    holds = bool(error <= torch.minimum(rounding, 0.1 * effect))
    if not holds:
        logger.info("%s: layers are run whole (cut up, they differ by %.1e)", vlm.name, error)
    return holds
