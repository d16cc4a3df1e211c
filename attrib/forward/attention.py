"""Capture or override the attention of a model's layers, with sdpa doing the work.

transformers looks attention functions up by name. Ours runs sdpa and hands the same queries, keys,
values and mask to a listener, which computes the few attention rows that are wanted: O(pos) per row
instead of the O(pos^2) of `output_attentions`. Position embeddings, grouped heads and query norms
are the model's own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from attrib.errors import AttribError
from attrib.forward.hooks import PositionGather, Positions, position_index
from attrib.model.vlm import VLM

# Called by transformers with (module, query, key, value, mask, **options), tensors of
# "batch heads pos d_head"; returns the output, "batch pos heads d_head".
AttentionFn = Callable[..., Tensor]


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
        return torch.add(bias, scores, alpha=self.scaling).softmax(-1)

    def bias(
        self, queries: Int[Tensor, "batch several"], dtype: torch.dtype
    ) -> Float[Tensor, "batch #heads several keys"]:
        """Term added to the scores of some queries: -inf (or very negative) at masked keys."""
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
        of = id(call.mask), call.k.shape[2], call.q.shape[2], call.causal, call.q.device
        if self.of != of:
            self.bias = call.bias(self.queries.to(call.q.device), torch.float32)
            self.of, self._mask = of, call.mask  # a mask that is kept keeps its id
        return self.bias


# The function behind "sdpa" finds the one to call by the module's id. All threads share the name in
# the configuration and the function behind it, while this table belongs to one thread: a pass in
# another falls back to sdpa. The name stays, since models look at it: some apply a sparse mask of
# their own for "eager" and "sdpa" only.
_FUNCTIONS: ContextVar[Mapping[int, AttentionFn] | None] = ContextVar("functions", default=None)
NAME = "sdpa"
_open = 0  # contexts in which the function behind the name is ours
_lock = Lock()


def sdpa(module: nn.Module, *args: Any, **options: Any) -> Tensor:
    """Attention by torch's scaled dot product."""
    return sdpa_attention_forward(module, *args, **options)[0]


def _attention(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, None]:
    function = (_FUNCTIONS.get() or {}).get(id(module), sdpa)
    return function(module, *args, **options), None


def _count(change: int) -> None:
    """Keep our function behind the name for as long as any context is open."""
    global _open
    with _lock:
        _open += change
        AttentionInterface.register(NAME, _attention if _open else sdpa_attention_forward)


@contextmanager
def override_attention(
    root: nn.Module, wrap: Callable[[AttentionFn], AttentionFn]
) -> Iterator[None]:
    """Let the modules below `root` attend by `wrap(the function in force)` inside the context.

    A model set to another implementation ("eager", "flash_attention_2") uses sdpa meanwhile.
    """
    configs = {id(c): c for m in root.modules() if (c := getattr(m, "config", None))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    outer = _FUNCTIONS.get() or {}
    plain = wrap(sdpa)
    own = {id(m): wrap(outer[id(m)]) if id(m) in outer else plain for m in root.modules()}
    token = _FUNCTIONS.set({**outer, **own})
    _count(1)
    try:
        for config in configs.values():
            if config._attn_implementation != NAME:
                config._attn_implementation = NAME
        yield
    finally:
        _count(-1)
        _FUNCTIONS.reset(token)
        for key, config in configs.items():
            if config._attn_implementation != before[key]:
                config._attn_implementation = before[key]


@contextmanager
def capture_calls(
    root: nn.Module, listener: Callable[[nn.Module, AttentionCall], None]
) -> Iterator[None]:
    """Call `listener(module, call)` at every attention below `root` inside the context.

    Raises:
        AttribError: The attention uses soft-caps, sinks or biases, which sdpa does not support.
    """

    def wrap(outer: AttentionFn) -> AttentionFn:
        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
        ) -> Tensor:
            for name in ("softcap", "s_aux", "position_bias"):
                if options.get(name) is not None:
                    raise AttribError(
                        f"{type(module).__name__} uses {name}, which attention rows do not support"
                    )
            out = outer(module, q, k, v, mask, **options)
            if (causal := options.get("is_causal")) is None:
                causal = getattr(module, "is_causal", True)
            if (scaling := options.get("scaling")) is None:
                scaling = q.shape[-1] ** -0.5
            listener(module, AttentionCall(q, k, v, mask, float(scaling), bool(causal), out))
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
        AttribError: The model's attention has soft-caps, sinks or biases that sdpa does not know.
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
