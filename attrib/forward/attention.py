"""Look at the queries and keys of the decoder's attention while sdpa does the work.

transformers lets a model's attention function be chosen by name. Ours runs sdpa and hands the same
queries, keys and mask to a listener, so that the few attention rows that are wanted are computed
beside
it: O(pos) per row instead of the O(pos^2) of `output_attentions`, and position embeddings, grouped
heads and query norms are the model's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from attrib.errors import AttribError
from attrib.forward.hooks import Positions, is_cached_step, position_index
from attrib.model.vlm import VLM

Listener = Callable[[int, "AttentionCall"], None]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of a decoder layer's attention.

    Attributes:
        q: Queries, rotated and normed as the model does.
        k: Keys; with grouped queries fewer heads than `q`.
        v: Values.
        mask: True, or 0 added to the score, where a query sees a key; None if `causal` says it all.
        scaling: Factor of the scores.
        causal: Whether a missing mask means a causal one.
        out: What sdpa returned.
    """

    q: Float[Tensor, "batch heads pos d_head"]
    k: Float[Tensor, "batch key_heads keys d_head"]
    v: Float[Tensor, "batch key_heads keys d_value"]
    mask: Tensor | None
    scaling: float
    causal: bool
    out: Float[Tensor, "batch pos heads d_value"]

    def row(
        self, queries: Int[Tensor, "batch *several"]
    ) -> Float[Tensor, "batch heads *several_keys"]:
        """Attention of one query position per example, or of several, in float32."""
        batch, heads, pos, d_head = self.q.shape
        at = torch.arange(batch, device=self.q.device)[:, None]
        wanted = queries.to(self.q.device).reshape(batch, -1)
        # Grouped-query attention: consecutive query heads share a key head.
        q = self.q[at, :, wanted].float().transpose(1, 2)
        q = q.reshape(batch, self.k.shape[1], -1, d_head)
        scores = (q @ self.k.float().transpose(-1, -2)).reshape(batch, heads, wanted.shape[1], -1)
        scores = scores * self.scaling
        if self.mask is not None:
            mask = self.mask.expand(batch, -1, -1, -1)[at, :, wanted].transpose(1, 2)
            seen = mask if mask.dtype == torch.bool else None
            scores = (
                scores + mask.float() if seen is None else scores.masked_fill(~seen, -torch.inf)
            )
        elif self.causal and pos > 1:
            later = torch.arange(scores.shape[-1], device=at.device) > wanted[..., None]
            scores = scores.masked_fill(later[:, None], -torch.inf)
        return scores.softmax(-1).reshape(batch, heads, *queries.shape[1:], -1)

    def mixed(self, row: Float[Tensor, "batch heads keys"]) -> Float[Tensor, "batch heads d_value"]:
        """The values as `row` weighs them: attention's output before the output projection."""
        batch, heads, keys = row.shape
        grouped = row.reshape(batch, self.v.shape[1], -1, keys)
        return (grouped @ self.v.float()).reshape(batch, heads, -1)

    def output_at(self, queries: Int[Tensor, " batch"]) -> Float[Tensor, "batch heads d_value"]:
        """What sdpa returned at one query position per example."""
        return self.out[
            torch.arange(len(self.out), device=self.out.device), queries.to(self.out.device)
        ]


# The attention function is looked up by name from inside the model, so the listener of the running
# context reaches it through a context variable: set per thread, and only while a context is open.
_LISTENER: ContextVar[Callable[[nn.Module, AttentionCall], None] | None] = ContextVar(
    "listener", default=None
)


def _tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise AttribError(
                f"{type(module).__name__} uses {name}, which attention rows do not support"
            )
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if listener := _LISTENER.get():
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        call = AttentionCall(query, key, value, attention_mask, scaling, bool(causal), out)
        listener(module, call)
    return out, None


# The mask function goes with it: without one, transformers would pass no mask at all.
AttentionInterface.register("attrib_tap", _tapped_attention)
AttentionMaskInterface.register("attrib_tap", sdpa_mask)


@contextmanager
def capture_attention(vlm: VLM, listener: Listener) -> Iterator[None]:
    """Call `listener(layer, call)` at every attention of a decoder layer inside the context."""
    layer_of = {id(part): i for i, layer in enumerate(vlm.layers) for part in layer.modules()}
    configs = {
        id(c): c for m in vlm.components.decoder.modules() if (c := getattr(m, "config", None))
    }
    before = {key: config._attn_implementation for key, config in configs.items()}

    outer = _LISTENER.get()

    def listen(module: nn.Module, call: AttentionCall) -> None:
        if outer is not None:
            outer(module, call)
        if (layer := layer_of.get(id(module))) is not None:
            listener(layer, call)

    token = _LISTENER.set(listen)
    try:
        for config in configs.values():
            config._attn_implementation = "attrib_tap"
        yield
    finally:
        _LISTENER.reset(token)
        for key, config in configs.items():
            config._attn_implementation = before[key]


@contextmanager
def attention_rows(vlm: VLM, queries: Positions) -> Iterator[dict[int, Tensor]]:
    """Keep each layer's attention from one query position per example, with sdpa staying on.

    Args:
        vlm: The model.
        queries: One per example, as indices or as a mask, or several as "batch several" indices.

    Yields:
        A dict that the forward pass inside the context fills: layer -> Float "batch heads pos" in
        float32, each row summing to 1.

    Raises:
        AttribError: The model's attention has soft-caps, sinks or biases that sdpa does not know.
    """
    at = position_index(queries)
    rows: dict[int, Tensor] = {}

    def listen(layer: int, call: AttentionCall) -> None:
        if not is_cached_step(call.q.shape[2], at):
            rows[layer] = call.row(at)

    with capture_attention(vlm, listen):
        yield rows


# Called as transformers calls it, with (module, query, key, value, mask, **more), tensors of
# "batch heads pos d_head"; returns what the module is to go on with, "batch pos heads d_head".
AttentionFn = Callable[..., Tensor]
OURS, SDPA = "attrib_respond", "sdpa"
# Attention functions are looked up by name from inside the model: what the running context wants
# done reaches ours through a context variable.
_RESPOND: ContextVar[AttentionFn] = ContextVar("respond")


def _respond(*call: Any, **more: Any) -> tuple[Tensor, None]:
    return _RESPOND.get()(*call, **more), None


AttentionInterface.register(OURS, _respond)
AttentionMaskInterface.register(OURS, sdpa_mask)


@contextmanager
def override_attention(part: nn.Module, respond: AttentionFn | None) -> Iterator[None]:
    """Let a part of a model attend by `respond`, or by sdpa with nobody looking if it is None."""
    configs = {id(c): c for m in part.modules() if (c := getattr(m, "config", None))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    token = _RESPOND.set(respond) if respond else None
    try:
        for config in configs.values():
            config._attn_implementation = OURS if respond else SDPA
        yield
    finally:
        if token:
            _RESPOND.reset(token)
        for key, config in configs.items():
            config._attn_implementation = before[key]
