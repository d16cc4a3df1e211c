"""Replay the later layers on perturbed copies of a batch, only where the perturbation reaches.

Noise in the output of layer l leaves the layers up to l unchanged and, in a causal decoder, all
earlier positions in every layer. A copy therefore resumes from the clean output of layer l and runs
the suffix: the positions from the first perturbed one on. Earlier positions contribute the keys and
values of the clean pass. The last layer runs a single query, the last prompt token. Copies of
several layers share one pass: a perturbed copy enters the batch after its layer.

Where attention looks ahead (bidirectional prefixes, blocks of image tokens), the mask tells how
far, and the suffix starts earlier. Layers that cannot be sliced (no cache, unknown arguments) run
whole. Once per model and kind of batch, the suffix is verified against a whole replay.
"""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.errors import is_out_of_memory
from attrib.forward import replay
from attrib.forward.hooks import gather_positions
from attrib.forward.layer_call import (
    KeyValues,
    is_known,
    keys_values,
    one_query,
    run_with_kv,
    run_with_prefix,
    select_rows,
    signature,
    slice_positions,
    visible_keys,
)
from attrib.forward.replay import Call, Captured, CleanPass, between_layers, forward_from
from attrib.model.devices import wide
from attrib.model.precision import WHOLE_PASS
from attrib.model.vlm import VLM

logger = logging.getLogger("attrib")
# Saving less than this share of positions does not pay: attention is faster without a mask.
MIN_SAVING = 0.1


@dataclass(frozen=True, eq=False)
class Suffix:
    """The positions from `start` on, and everything needed to run them through the later layers.

    Attributes:
        vlm: The model.
        start: The first position that runs.
        hidden: Every layer's clean output, "batch suffix d_model".
        between: For layers with a write before them, the clean stream before and after it.
        calls: Arguments of each layer call.
        prefix: Keys and values of the earlier positions by layer, if there are any.
        query: The last layer's call for the last prompt token alone; None to run it whole.
        last: Index of the last prompt token in the suffix.
        carried: The captured pass if layers hand each other more than the stream, else None.
    """

    vlm: VLM
    start: int
    hidden: dict[int, Tensor]
    between: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, Call]
    prefix: dict[int, KeyValues]
    query: Call | None
    last: Int[Tensor, " batch"]
    carried: Captured | None = None

    @property
    def num_pos(self) -> int:
        """Number of positions that run."""
        return self.hidden[0].shape[1]

    @torch.no_grad()
    def run(
        self,
        layers: Sequence[int],
        rows: Int[Tensor, " copy"],
        perturbed: Callable[[slice], Float[Tensor, "some suffix d_model"]],
    ) -> Float[Tensor, "copy d_model"]:
        """The last layer's output at the last prompt token, for perturbed copies of the batch.

        Args:
            layers: For each copy the layer whose output is perturbed, in ascending order.
            rows: The example that each copy belongs to.
            perturbed: Returns this output for consecutive copies of one layer.
        """
        if self.carried is not None:
            spans = [slice(bisect_left(layers, i), bisect_right(layers, i)) for i in set(layers)]
            spans.sort(key=lambda span: span.start)
            apart = partial(self._apart, self.carried)
            parts = [apart(layers[s.start], rows[s], perturbed(s)) for s in spans]
            return torch.cat([part.to(parts[-1].device) for part in parts])
        final = self.vlm.num_layers - 1
        h = self.hidden[0][:0]
        for i in range(layers[0] + 1, final + 1):
            if (entered := bisect_right(layers, i - 1)) > len(h):
                new = perturbed(slice(len(h), entered))
                h = torch.cat([h.to(new.device), new])  # a model may span devices
            if i < final:
                h = self._layer(i, h, rows[: len(h)])
        resumed = len(h)
        parts = [self._final_layer(h, rows[:resumed])] if resumed else []
        if resumed < len(layers):
            parts.append(self._at_last(perturbed(slice(resumed, len(layers))), rows[resumed:]))
        return torch.cat([part.to(parts[-1].device) for part in parts])

    def _apart(self, captured: Captured, layer: int, rows: Tensor, h: Tensor) -> Tensor:
        """`run` for copies of one layer: what layers hand on differs between layers."""
        entering = partial(self._entering, rows=rows)
        select = partial(select_rows, rows=rows, batch=len(self.last))
        return self._at_last(
            replay.run_layers(self.vlm, captured, layer, h, entering, select), rows
        )

    def _layer(self, i: int, h: Tensor, rows: Tensor) -> Tensor:
        """The output of layer `i` for copies whose previous layer returned `h`."""
        call = select_rows(self.calls[i], rows, len(self.last))
        h = self._entering(h, i, rows)
        return run_with_prefix(self.vlm.layers[i], h, call, self._prefix(i, rows))

    def _final_layer(self, h: Tensor, rows: Tensor) -> Tensor:
        i = self.vlm.num_layers - 1
        if self.query is None:
            return self._at_last(self._layer(i, h, rows), rows)
        layer, batch = self.vlm.layers[i], len(self.last)
        h = self._entering(h, i, rows)
        kv = keys_values(layer, h, select_rows(self.calls[i], rows, batch), self._prefix(i, rows))
        query = select_rows(self.query, rows, batch)
        return run_with_kv(layer, self._at_last(h, rows)[:, None], query, kv)[:, 0]

    def _entering(self, h: Tensor, i: int, rows: Tensor) -> Tensor:
        if i not in self.between:
            return h
        before, after = (clean[rows.to(clean.device)] for clean in self.between[i])
        return between_layers(h, before, after)

    def _prefix(self, i: int, rows: Tensor) -> KeyValues | None:
        return self.prefix[i].rows(rows) if i in self.prefix else None

    def _at_last(self, h: Tensor, rows: Tensor) -> Tensor:
        return gather_positions(h, self.last[rows.to(self.last.device)])


def is_sliceable(clean: CleanPass) -> bool:
    """Whether the axes of all layer arguments are known."""
    return all(map(is_known, clean.captured.calls.values()))


def build_suffix(clean: CleanPass, first: int) -> Suffix:
    """The suffix of a batch that is perturbed at position `first` and later."""
    if not is_sliceable(clean):
        return _whole(clean)
    start = causal_boundary(clean, first)
    if start < MIN_SAVING * clean.real.shape[1]:
        start = 0
    config = getattr(clean.vlm.components.decoder, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    kind = (start > 0, attention, tuple(map(signature, clean.captured.calls.values())))
    verified = clean.vlm.verified
    if kind not in verified:
        if not clean.logits.isfinite().all():
            return _whole(clean)  # nothing to compare
        verified[kind] = _equals_whole(clean, start)
    return _sliced(clean, start) if verified[kind] else _whole(clean)


def causal_boundary(clean: CleanPass, first: int) -> int:
    """The last position up to `first` that no real position before it attends to or past."""
    num_pos = clean.real.shape[1]
    index = torch.arange(num_pos, device=clean.real.device)
    furthest = index.clone()  # the last key that a query sees; at least its own
    masks = {id(call[1].get("attention_mask")): call for call in clean.captured.calls.values()}
    for call in masks.values():
        seen = visible_keys(call, num_pos, clean.logits).any(1) & clean.real[:, :, None]
        last_seen = torch.where(seen.any(0), index, -1).amax(-1)
        furthest = torch.maximum(furthest, last_seen.to(furthest.device))
    ahead = furthest.cummax(0).values.tolist()
    return next(p for p in range(first, -1, -1) if p == 0 or ahead[p - 1] < p)


def _whole(clean: CleanPass) -> Suffix:
    """All positions, with every layer run as it is."""
    pairs = {i: pair for i, pair in clean.captured.inputs.items() if i > 0}
    carried = clean.captured if clean.captured.carries else None
    calls = clean.captured.calls
    return Suffix(clean.vlm, 0, clean.hidden, pairs, calls, {}, None, clean.last, carried)


def _sliced(clean: CleanPass, start: int) -> Suffix:
    """The positions from `start` on, and in the last layer one query.

    Raises:
        NoCacheError: Some layer does not use a cache.
    """
    vlm, like, num_pos = clean.vlm, clean.logits, clean.real.shape[1]
    calls, entering = clean.captured.calls, clean.captured.inputs

    def prefix(i: int, call: Call) -> KeyValues:
        h = entering[i][1] if i in entering else clean.hidden[i - 1]
        front = slice_positions(call, 0, start, num_pos, like)
        return keys_values(vlm.layers[i], h[:, :start], front)

    def suffix(h: Tensor) -> Tensor:
        return h[:, start:].clone() if start else h  # a view would keep the prefix in memory

    return Suffix(
        vlm,
        start,
        {i: suffix(h) for i, h in clean.hidden.items()},
        {i: (suffix(a), suffix(b)) for i, (a, b) in entering.items() if i > 0},
        {i: slice_positions(call, start, num_pos, num_pos, like) for i, call in calls.items()},
        {i: prefix(i, call) for i, call in calls.items()} if start else {},
        one_query(calls[vlm.num_layers - 1], clean.last.tolist(), num_pos, like),
        clean.last - start,
    )


def _equals_whole(clean: CleanPass, start: int) -> bool:
    """Whether a suffix on states perturbed from `start` on agrees with a whole replay."""
    vlm, h = clean.vlm, clean.hidden[0]
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    probe = h.clone()
    probe[:, start:] += (noise[:, start:].to(h.device) * h.float().std()).to(h.dtype)
    rows = torch.arange(len(h), device=h.device)
    try:
        fast = _sliced(clean, start).run([0] * len(h), rows, lambda some: probe[some, start:])
    except Exception as error:  # layers were not written for this and may raise anything
        if is_out_of_memory(error):
            raise
        logger.info("%s: layers run whole (%s)", vlm.name, error)
        return False
    slow = gather_positions(forward_from(vlm, clean.captured, 0, probe), clean.last)
    final = gather_positions(clean.hidden[vlm.num_layers - 1], clean.last)
    fast, slow, final = (wide(h) for h in (fast.to(slow.device), slow, final.to(slow.device)))
    effect, error = (slow - final).abs().max(), (fast - slow).abs().max()
    limit = WHOLE_PASS[h.dtype]  # a small effect has larger relative rounding errors
    agrees = bool(error <= torch.minimum(limit * slow.abs().max(), max(limit, 0.01) * effect))
    if not agrees:
        logger.info("%s: layers run whole (sliced, they differ by %.1e)", vlm.name, error)
    return agrees
