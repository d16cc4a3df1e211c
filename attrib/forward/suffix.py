"""Run the later layers on many disturbed versions of a batch, only where the disturbance reaches.

Noise in the output of layer l leaves the layers up to l as they were, and in a causal decoder all
positions in front of it too, in every layer. So a version resumes from the clean output of layer l
and runs its last positions alone, the suffix; of the others only keys and values are needed, and
those are the clean pass's. The last layer needs keys and values of the suffix, but one query: the
last prompt token's. Versions of several layers share one pass: each joins where its layer ends.

`attrib.forward.cutting` makes a `Suffix` of a batch, and sees to it that this holds.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attrib.forward.hooks import gather_positions, read
from attrib.forward.kv_prefix import KeyValues, keys_values, run_with_kv, run_with_prefix
from attrib.forward.layer_call import (
    Call,
    is_known,
    one_query,
    select_rows,
    signature,
    slice_positions,
    visible_keys,
)
from attrib.forward.replay import Captured, capture, forward_from
from attrib.memory import is_out_of_memory
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class Suffix:
    """The positions from `start` on, with all it takes to run them through the later layers.

    Attributes:
        vlm: The model.
        start: The first position that is run.
        hidden: Every layer's clean output, "batch suffix d_model".
        between: For a layer that something is written in front of, the clean stream before and
            after that.
        calls: Per layer the other arguments.
        kept: Per layer keys and values of the positions in front, if there are any.
        query: The last layer's call for the last prompt token alone; None to run it whole.
        last: Where the last prompt token is in the suffix.
    """

    vlm: VLM
    start: int
    hidden: dict[int, Tensor]
    between: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, Call]
    kept: dict[int, KeyValues]
    query: Call | None
    last: Int[Tensor, " batch"]

    @property
    def num_pos(self) -> int:
        """Number of positions that are run."""
        return self.hidden[0].shape[1]

    @torch.no_grad()
    def run(
        self,
        layers: Sequence[int],
        rows: Int[Tensor, " version"],
        disturbed: Callable[[slice], Float[Tensor, "some suffix d_model"]],
    ) -> Float[Tensor, "version d_model"]:
        """The last layer's output at the last prompt token, for versions of the batch.

        Args:
            layers: For each version the layer whose output is disturbed, in ascending order.
            rows: The example it is a version of.
            disturbed: That output, for consecutive versions of one layer.
        """
        final = self.vlm.num_layers - 1
        h = self.hidden[0][:0]
        for i in range(layers[0] + 1, final + 1):
            if (joined := bisect_right(layers, i - 1)) > len(h):
                new = disturbed(slice(len(h), joined))
                h = torch.cat([h.to(new.device), new])  # a model may span devices
            if i < final:
                h = self._through(i, h, rows[: len(h)])
        resumed = len(h)
        done = [self._through_final(h, rows[:resumed])] if resumed else []
        if resumed < len(layers):
            done.append(self._at_last(disturbed(slice(resumed, len(layers))), rows[resumed:]))
        return torch.cat([part.to(done[-1].device) for part in done])

    def _through(self, i: int, h: Tensor, rows: Tensor) -> Tensor:
        """The output of layer `i`, of versions `h` of what enters it."""
        call = select_rows(self.calls[i], rows, len(self.last))
        h = self._entering(i, h, rows)
        return run_with_prefix(self.vlm.layers[i], h, call, self._kept_of(i, rows))

    def _through_final(self, h: Tensor, rows: Tensor) -> Tensor:
        i = self.vlm.num_layers - 1
        if self.query is None:
            return self._at_last(self._through(i, h, rows), rows)
        layer, batch = self.vlm.layers[i], len(self.last)
        h = self._entering(i, h, rows)
        call = select_rows(self.calls[i], rows, batch)
        given = keys_values(layer, h, call, self._kept_of(i, rows))
        query = select_rows(self.query, rows, batch)
        return run_with_kv(layer, self._at_last(h, rows)[:, None], query, given)[:, 0]

    def _entering(self, i: int, h: Tensor, rows: Tensor) -> Tensor:
        if i not in self.between:
            return h
        before, after = (clean[rows.to(clean.device)] for clean in self.between[i])
        return torch.where(h == before, after, h + (after - before))

    def _kept_of(self, i: int, rows: Tensor) -> KeyValues | None:
        return self.kept[i].rows(rows) if i in self.kept else None

    def _at_last(self, h: Tensor, rows: Tensor) -> Tensor:
        return gather_positions(h, self.last[rows.to(self.last.device)])


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


def is_sliceable(clean: CleanPass) -> bool:
    """Whether all that the layers were given can be shortened; if so, a test has the last word."""
    return all(map(is_known, clean.captured.calls.values()))


def build_suffix(clean: CleanPass, first: int) -> Suffix:
    """What to run of a batch that is disturbed at position `first` and later."""
    if not is_sliceable(clean):
        return _whole(clean)
    calls = list(clean.captured.calls.values())
    start = causal_boundary(clean, first)
    if start < WORTH_CUTTING * clean.real.shape[1]:
        start = 0
    config = getattr(clean.vlm.components.decoder, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    kind = (start > 0, attention, tuple(map(signature, calls)))
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
        NoCacheError: Some layer has no keys and values to keep.
    """
    vlm, like, num_pos = clean.vlm, clean.logits, clean.real.shape[1]
    calls, entering = clean.captured.calls, clean.captured.inputs
    kept = {}
    for i, call in calls.items() if start else ():
        h = entering[i][1] if i in entering else clean.hidden[i - 1]
        front = slice_positions(call, 0, start, num_pos, like)
        kept[i] = keys_values(vlm.layers[i], h[:, :start], front)

    def suffix(h: Tensor) -> Tensor:
        return h[:, start:].clone() if start else h  # a view would keep the front in memory

    query = one_query(calls[vlm.num_layers - 1], clean.last.tolist(), num_pos, like)
    return Suffix(
        vlm,
        start,
        {i: suffix(h) for i, h in clean.hidden.items()},
        {i: (suffix(a), suffix(b)) for i, (a, b) in entering.items() if i > 0},
        {i: slice_positions(call, start, num_pos, num_pos, like) for i, call in calls.items()},
        kept,
        query,
        clean.last - start,
    )


def causal_boundary(clean: CleanPass, first: int) -> int:
    """The last position up to `first` that no real position in front of it attends to or past."""
    num_pos = clean.real.shape[1]
    index = torch.arange(num_pos, device=clean.real.device)
    furthest = index.clone()  # the last key that a query sees; at the least its own
    masks = {id(call[1].get("attention_mask")): call for call in clean.captured.calls.values()}
    for call in masks.values():
        seen = visible_keys(call, num_pos, clean.logits).any(1) & clean.real[:, :, None]
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
    slow = gather_positions(forward_from(vlm, clean.captured, 0, probe), clean.last).double()
    effect = (
        (slow - gather_positions(clean.hidden[vlm.num_layers - 1], clean.last).double()).abs().max()
    )
    rounding = 1000 * torch.finfo(h.dtype).eps * slow.abs().max()
    error = (quick.double() - slow).abs().max()
    # In half precision rounding is no limit at all: there, the effect of the disturbance is.
    holds = bool(error <= torch.minimum(rounding, 0.1 * effect))
    if not holds:
        logger.info("%s: layers are run whole (cut up, they differ by %.1e)", vlm.name, error)
    return holds
