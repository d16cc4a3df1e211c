"""Capture or override the attention of a model's layers, with its own function doing the work.

transformers looks attention functions up by name. Ours runs sdpa, or a model's eager function, and
hands the same queries, keys, values and mask to a listener, which computes the few attention rows
that are wanted: O(pos) per row instead of the O(pos^2) of `output_attentions`. Position embeddings,
grouped heads and query norms are the model's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.forward.hooks import (
    AttentionFn,
    PositionGather,
    Positions,
    override_attention,
    position_index,
)
from attrib.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """Arguments and output of one attention call.

    Attributes:
        q: Queries, after rotation and norm.
        k: Keys; with grouped queries fewer heads than `q`.
        v: Values.
        mask: True, or 0 added to the score, where a query sees a key; None if `causal` suffices.
        scaling: Factor of the scores.
        causal: Whether a missing mask means a causal one.
        out: Output before the output projection.
        softcap: Largest size of a scaled score, approached as c tanh(x / c); None without one.
        position_bias: Term added to the scores; None without one.
    """

    q: Float[Tensor, "batch heads pos d_head"]
    k: Float[Tensor, "batch key_heads keys d_head"]
    v: Float[Tensor, "batch key_heads keys d_value"]
    mask: Tensor | None
    scaling: float
    causal: bool
    out: Float[Tensor, "batch pos heads d_value"]
    softcap: float | None = None
    position_bias: Float[Tensor, "#batch heads pos keys"] | None = None

    def row(
        self, queries: Int[Tensor, "batch *several"]
    ) -> Float[Tensor, "batch heads *several_keys"]:
        """Attention from one query position per example, or from several, in float32."""
        wanted = queries.to(self.q.device).reshape(len(queries), -1)
        rows = self.rows(PositionGather(wanted), self.bias(wanted, torch.float32))
        return rows.reshape(*rows.shape[:2], *queries.shape[1:], -1)

    def rows(
        self, gather: PositionGather, bias: Float[Tensor, "batch #heads several keys"]
    ) -> Float[Tensor, "batch heads several keys"]:
        """Attention from several query positions per example, whose bias is known, in float32."""
        batch, heads, _, d_head = self.q.shape
        # Grouped-query attention: consecutive query heads share a key head.
        q = gather(self.q.transpose(1, 2)).float().transpose(1, 2)
        q = q.reshape(batch, self.k.shape[1], -1, d_head)
        scores = (q @ self.k.float().transpose(-1, -2)).reshape(batch, heads, *bias.shape[2:])
        if (cap := self.softcap) is not None:
            return (bias + cap * torch.tanh(scores * (self.scaling / cap))).softmax(-1)
        return torch.add(bias, scores, alpha=self.scaling).softmax(-1)

    def bias(
        self, queries: Int[Tensor, "batch several"], dtype: torch.dtype
    ) -> Float[Tensor, "batch #heads several keys"]:
        """Term added to the scores of some queries: -inf (or very negative) at masked keys."""
        masked = self._masked(queries, dtype)
        if self.position_bias is None:
            return masked
        at = torch.arange(len(queries), device=queries.device)[:, None]
        each = self.position_bias.expand(len(queries), -1, -1, -1)
        return masked + each[at, :, queries].transpose(1, 2).to(dtype)

    def _masked(self, queries: Tensor, dtype: torch.dtype) -> Tensor:
        keys, device = self.k.shape[2], queries.device
        if self.mask is not None:
            at = torch.arange(len(queries), device=device)[:, None]
            mask = self.mask.expand(len(queries), -1, -1, -1)[at, :, queries, :keys].transpose(1, 2)
            if mask.dtype != torch.bool:
                return mask.to(dtype)
            visible = mask
        elif self.causal and self.q.shape[2] > 1:
            visible = (torch.arange(keys, device=device) <= queries[..., None])[:, None]
        else:
            visible = torch.ones((len(queries), 1, queries.shape[1], keys), device=device).bool()
        return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(
            ~visible, -torch.inf
        )

    def weighted_values(
        self, row: Float[Tensor, "batch heads keys"]
    ) -> Float[Tensor, "batch heads d_value"]:
        """Sum of the values weighted by `row`: the output before the output projection."""
        batch, heads, keys = row.shape
        grouped = row.reshape(batch, self.v.shape[1], -1, keys)
        return (grouped @ self.v.float()).reshape(batch, heads, -1)


@dataclass(eq=False)
class _LastBias:
    """The bias of chosen queries: that of the call before if it is the same, as in most layers."""

    queries: Int[Tensor, "batch several"]
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    of: tuple[Any, ...] = ()

    def __call__(self, call: AttentionCall) -> Float[Tensor, "batch #heads several keys"]:
        kept = call.mask, call.position_bias  # what is kept keeps its id
        of = *map(id, kept), call.k.shape[2], call.q.shape[2], call.causal, call.q.device
        if self.of != of:
            self.bias = call.bias(self.queries.to(call.q.device), torch.float32)
            self.of, self._kept = of, kept
        return self.bias


@contextmanager
def capture_calls(
    root: nn.Module, listener: Callable[[nn.Module, AttentionCall], None]
) -> Iterator[None]:
    """Call `listener(module, call)` at every attention below `root` inside the context.

    Raises:
        AttribError: The attention has sinks, to which a share of each row goes.
    """

    def wrap(outer: AttentionFn) -> AttentionFn:
        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
        ) -> Tensor:
            if options.get("s_aux") is not None:
                raise AttribError(
                    f"{type(module).__name__} uses s_aux, attention sinks, which attention rows "
                    "do not support"
                )
            out = outer(module, q, k, v, mask, **options)
            if (causal := options.get("is_causal")) is None:
                causal = getattr(module, "is_causal", True)
            if (scaling := options.get("scaling")) is None:
                scaling = q.shape[-1] ** -0.5
            more = options.get("softcap"), options.get("position_bias")
            listener(module, AttentionCall(q, k, v, mask, float(scaling), bool(causal), out, *more))
            return out

        return attend

    with override_attention(root, wrap):
        yield


@contextmanager
def capture_attention(vlm: VLM, listener: Callable[[int, AttentionCall], None]) -> Iterator[None]:
    """Call `listener(layer, call)` at every attention of a decoder layer inside the context."""
    layer_of = {id(part): i for i, layer in enumerate(vlm.layers) for part in layer.modules()}

    def listen(module: nn.Module, call: AttentionCall) -> None:
        if (layer := layer_of.get(id(module))) is not None:
            listener(layer, call)

    with capture_calls(vlm.components.decoder, listen):
        yield


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
        AttribError: The model's attention has sinks.
    """
    index = position_index(queries)
    gather = PositionGather(index.reshape(len(index), -1))
    rows: dict[int, Tensor] = {}
    bias = _LastBias(gather.index)

    def listen(layer: int, call: AttentionCall) -> None:
        if not gather.is_cached_step(call.q.shape[2]):
            found = call.rows(gather, bias(call))
            rows[layer] = found.reshape(*found.shape[:2], *index.shape[1:], -1)

    with capture_attention(vlm, listen):
        yield rows
