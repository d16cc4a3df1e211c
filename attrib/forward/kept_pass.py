"""A teacher-forced pass whose states are kept, so that an edited pass goes on from a later layer.

What an edit leaves alone (pictures, prompts, the layers in front of it) would be the same in the
edited model. Its answers therefore start from the states that enter the first layer that the edit
changes, with the keys and values of the layers before it.

A model is used like this only if it passes a test, once: a pass that goes on from the middle must
give the logits of the whole pass, and so must a step from its keys and values.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from attrib.errors import is_out_of_memory
from attrib.forward.hooks import read
from attrib.forward.layer_call import is_known, select_rows
from attrib.forward.replay import Call, Captured, between_layers, capture, run_layers
from attrib.model.batch import Batch
from attrib.model.devices import loaded
from attrib.model.forced_pass import ForcedPass, steps_agree
from attrib.model.probe import FAILURES
from attrib.model.prompt_rewriting import pushed
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager

logger = getLogger("attrib")
VERIFIED = "passes that go on from the states of another"
LARGEST = 1 << 28  # bytes of the states, keys and values of a pass that are kept at most


@dataclass(frozen=True, eq=False)
class KeptPass:
    """A pass of the unedited model.

    Attributes:
        forced: The pass.
        captured: The arguments of its layers.
        hidden: Every layer's output, "batch pos d_model".
        keys_values: Keys and values of the prompts and targets by layer.
    """

    forced: ForcedPass
    captured: Captured
    hidden: dict[int, Tensor]
    keys_values: list[tuple[Tensor, Tensor]]

    @classmethod
    @torch.no_grad()
    def run(
        cls, vlm: VLM, batch: Batch, *, whole: bool = False
    ) -> "tuple[ForcedPass, KeptPass | None]":
        """Run the model once; `whole` as in `ForcedPass.run`.

        Returns:
            The pass, and what is kept of it: None where that is too large, or of no use.
        """
        if not vlm.verified.get(VERIFIED, True) or _size(vlm, batch) > LARGEST:
            return ForcedPass.run(vlm, batch, whole=whole), None
        with capture(vlm) as captured, read(vlm) as hidden:
            forced = ForcedPass.run(vlm, batch, whole=whole)
        kept = cls(forced, captured, dict(hidden), _keys_values(forced.cache))
        if VERIFIED not in vlm.verified:
            vlm.verified[VERIFIED] = bool(kept.keys_values) and kept._is_right()
        return forced, kept if vlm.verified[VERIFIED] else None

    @torch.no_grad()
    def resumed(self, rows: Sequence[int], batch: Batch, first: int) -> ForcedPass:
        """The pass of the model in its current state, where it differs from layer `first` on.

        Args:
            rows: Examples of the kept pass.
            batch: These examples, with the same padding.
            first: The first layer that runs.
        """
        vlm, captured, num = self.forced.vlm, self.captured, self.forced.batch.size
        at = torch.tensor(list(rows))

        def own(value: Tensor) -> Tensor:
            return value if list(rows) == list(range(num)) else value[at.to(value.device)]

        def entering(h: Tensor, i: int) -> Tensor:
            pair = captured.inputs.get(i) if i else None
            return between_layers(h, *map(own, pair)) if pair else h

        cache = self._cache(first, own)

        def select(call: Call) -> Call:
            args, kwargs = call if len(rows) == num else select_rows(call, at, num)
            return args, {**kwargs, "past_key_values": cache, "use_cache": True}

        start = own(self.hidden[first - 1] if first else captured.embed)
        with eager(), loaded(vlm.model), pushed(vlm._active, batch):
            h = run_layers(vlm, captured, first - 1, start, entering, select)
            logits = vlm.unembed(h[:, -self.forced.logits.shape[1] :])
        return ForcedPass(vlm, batch, logits, cache)

    def _cache(self, first: int, own: Any) -> DynamicCache:
        """The keys and values of the layers in front of `first`, and none of the others."""
        cache = copy.copy(self.forced.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for i, (layer, pair) in enumerate(zip(cache.layers, self.keys_values, strict=True)):
            layer.keys, layer.values = map(own, pair)
            if i >= first:
                layer.reset()
        return cache

    def _is_right(self) -> bool:
        """Whether a pass that goes on from the middle gives this one's logits and next step."""
        vlm, batch, calls = self.forced.vlm, self.forced.batch, self.captured.calls
        if self.captured.carries or not all(map(is_known, calls.values())):
            return False
        try:
            again = self.resumed(range(batch.size), batch, vlm.num_layers // 2)
            whole = replace(self.forced, cache=self._cache(vlm.num_layers, lambda value: value))
            right = steps_agree(whole, again)
        except (*FAILURES, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            right = False
        if not right:
            logger.info("%s: edited passes run from the pictures on", vlm.name)
        return right


def _keys_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values by layer, as they are now; none of a cache of another kind.

    Later steps put longer tensors in their places.
    """
    layers: list[Any] = cache.layers if type(cache) is DynamicCache else []
    if any(type(layer) is not DynamicLayer for layer in layers):
        return []
    return [(layer.keys, layer.values) for layer in layers]


def _size(vlm: VLM, batch: Batch) -> int:
    """Bytes of the states, keys and values of a pass, if no layer shares keys between heads."""
    mask = batch.inputs["attention_mask"]
    return 3 * vlm.num_layers * mask.numel() * vlm.d_model * vlm.dtype.itemsize
