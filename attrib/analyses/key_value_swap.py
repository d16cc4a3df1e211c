"""Attention of one query when keys and values are swapped for others: every swap at once, exactly.

Perturbing the state of one token changes, for a query at another position, that token's key and
value and nothing else. With scores s, weights e = exp(s), Z = sum(e) and the output
a = sum(e v) / Z, swapping token n leads to

    a_n = (sum(e v) - e_n v_n + e'_n v'_n) / (Z - e_n + e'_n)                       (VisEdit, Eq. 8)

Only the change a_n - a is computed, never by subtracting two large numbers: in logarithms, and for
the one key that may hold nearly all of Z with the sums over the others taken anew.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.analyses.visual_tokens import VisualTokens
from attrib.forward.attention import AttentionCall, override_attention
from attrib.forward.attention_replay import AttentionRecord, Site
from attrib.forward.hooks import gather_positions

LARGEST = 2**23  # numbers in one tensor of attention weights: 32 MiB


@dataclass(frozen=True, eq=False)
class LastQuery:
    """What one query per example saw in one attention call, in float32 or better.

    Attributes:
        q: the query; query heads that share a key head stand together.
        k: all keys.
        v: all values.
        bias: added to the scores: 0, or -inf where the query does not see a key.
    """

    q: Float[Tensor, "batch key_heads group d_head"]
    k: Float[Tensor, "batch key_heads keys d_head"]
    v: Float[Tensor, "batch key_heads keys d_value"]
    bias: Float[Tensor, "batch #heads keys"]
    scaling: float

    @classmethod
    def of(cls, call: AttentionCall, last: Int[Tensor, " batch"]) -> "LastQuery":
        """The view of the queries at `last`."""
        row = torch.arange(len(last), device=call.q.device)
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        q = call.q[row, :, last.to(row.device)].to(dtype)
        q = q.reshape(len(row), call.k.shape[1], -1, q.shape[-1])
        bias = _bias(call, last.to(row.device), dtype)
        return cls(q, call.k.to(dtype), call.v.to(dtype), bias, call.scaling)

    def scores(
        self,
        k: Float[Tensor, "batch key_heads some d_head"],
        bias: Float[Tensor, "batch #heads some"],
    ) -> Float[Tensor, "batch key_heads group some"]:
        """Scores of keys."""
        scores = self.q @ k.to(self.q.dtype).transpose(-1, -2) * self.scaling
        if bias.shape[1] > 1:  # every head has its own
            return scores + bias.reshape(scores.shape)
        return scores + bias[:, :, None]

    def out(self) -> Float[Tensor, "batch heads d_value"]:
        """The output with nothing swapped, before the output projection."""
        return (self.scores(self.k, self.bias).softmax(-1) @ self.v).flatten(1, 2)

    def swap_each(
        self,
        at: Int[Tensor, "batch token"],
        k: Float[Tensor, "batch key_heads token d_head"],
        v: Float[Tensor, "batch key_heads token d_value"],
    ) -> Float[Tensor, "batch token heads d_value"]:
        """By how much `out` changes when the key and value of one token are swapped for others.

        Args:
            at: where the tokens stand among the keys.
            k: per token its other key.
            v: per token its other value.
        """
        scores = self.scores(self.k, self.bias)
        bias = _along(self.bias, at[:, None], -1)
        v, new = v.to(self.v.dtype), self.scores(k, bias)
        old, old_v = _along(scores, at[:, None, None], -1), _along(self.v, at[:, None, :, None], -2)
        top = scores.argmax(-1, keepdim=True)
        is_top = at[:, None, None] == top
        rest = scores.scatter(-1, top, -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        # Weight of all other keys; at most one key has more than half of it all.
        others = torch.where(
            is_top, rest.logsumexp(-1, keepdim=True), total + torch.log1p(-(old - total).exp())
        )
        after, before = torch.logaddexp(others, new), torch.logaddexp(others, old)
        gain = (new - after).exp()[..., None]
        loss = (old - torch.where(is_top, before, after)).exp()[..., None]
        mean, mean_of_rest = (x.softmax(-1) @ self.v for x in (scores, rest))
        base = torch.where(is_top[..., None], mean_of_rest[..., None, :], mean[..., None, :])
        change = gain * v[:, :, None] - loss * old_v[:, :, None] - (gain - loss) * base
        return change.flatten(1, 2).transpose(1, 2)

    def swap_sets(
        self,
        at: Int[Tensor, "batch token"],
        k: Float[Tensor, "batch key_heads token d_head"],
        v: Float[Tensor, "batch key_heads token d_value"],
        near: Bool[Tensor, "batch token token"],
    ) -> Float[Tensor, "batch token heads d_value"]:
        """As `swap_each`, where not token n alone is swapped but all tokens j with `near[n, j]`.

        Each set has a softmax of its own, over the old keys outside it and the new ones inside.
        """
        scores, v = self.scores(self.k, self.bias), torch.cat([self.v, v.to(self.v.dtype)], 2)
        new = self.scores(k, _along(self.bias, at[:, None], -1))
        gone = torch.zeros(*near.shape[:2], scores.shape[-1], dtype=torch.int8, device=at.device)
        gone.scatter_add_(2, at[:, None].expand_as(near), near.to(gone.dtype))
        allowed = torch.cat([gone == 0, near], -1)
        both = torch.cat([scores, new], -1)[..., None, :]
        heads, clean = scores.shape[1] * scores.shape[2], self.out()[:, None]
        parts = []
        for some in allowed.split(max(1, LARGEST // (len(at) * heads * both.shape[-1])), 1):
            weights = both.masked_fill(~some[:, None, None], -torch.inf).softmax(-1)
            out = (weights.flatten(2, 3) @ v).unflatten(2, weights.shape[2:4])
            parts.append(out.flatten(1, 2).transpose(1, 2) - clean)
        return torch.cat(parts, 1)


def _bias(call: AttentionCall, last: Int[Tensor, " batch"], dtype: torch.dtype) -> Tensor:
    """What the call adds to the scores of the queries at `last`, per head or for all heads."""
    row, keys = torch.arange(len(last), device=last.device), call.k.shape[2]
    if call.mask is not None:
        mask = call.mask.expand(len(last), -1, -1, -1)[row, :, last, :keys]
        if mask.dtype != torch.bool:
            return mask.to(dtype)
        seen = mask
    elif call.causal and call.q.shape[2] > 1:
        seen = (torch.arange(keys, device=last.device) <= last[:, None])[:, None]
    else:
        seen = torch.ones(len(last), 1, keys, dtype=torch.bool, device=last.device)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)


def _along(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """The entries of one axis that `index` names, whose other axes are 1 or those of `values`."""
    shape = list(values.shape)
    shape[axis] = index.shape[axis]
    return values.gather(axis, index.expand(shape))


logger = logging.getLogger(__name__)
Near = Bool[Tensor, "batch token token"] | None
Changes = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch token d_model"]]
ROUNDING = 0.01  # of matrix products, also in reduced precision; what is wrong is so by far more


def output_changes(
    attended: AttentionRecord,
    tokens: VisualTokens,
    site: Site,
    perturbed: Float[Tensor, "batch token d_model"],
    near: Near,
) -> Changes:
    """Attention's clean output at the last prompt token, and how it changes per perturbed token.

    Args:
        attended: the layer's attention in the clean pass.
        tokens: the visual tokens.
        site: where the perturbed states go in.
        perturbed: every token's perturbed state.
        near: which tokens are perturbed together with which; None for each by itself.
    """
    if (changes := _at_once(attended, tokens, site, perturbed, near)) is not None:
        return changes
    logger.warning(
        "layer %d: its attention does more than project, look and project: its heatmap is computed "
        "token by token, which takes as many attention calls as there are tokens", attended.layer,
    )  # fmt: skip
    return _one_by_one(attended, tokens, site, perturbed, near)


def _at_once(
    attended: AttentionRecord, tokens: VisualTokens, site: Site, perturbed: Tensor, near: Near
) -> Changes | None:
    """One attention call on the perturbed tokens; None where the result cannot be trusted.

    The call is exact if keys and values of a token follow from its own state and position, and if
    what comes behind the weighted mean of values is affine and the same at all positions. Four more
    tokens whose result is known go along to see that it is so.
    """
    call, hidden, num = attended.call, attended.entry(site).hidden, tokens.at.shape[1]
    assert call is not None and attended.out is not None
    last, row = tokens.last[:, None], torch.arange(len(hidden), device=hidden.device)[:, None]
    at = torch.cat([tokens.at, last, tokens.at[:, :1], last, last], 1).to(hidden.device)
    query = LastQuery.of(call, tokens.last)
    clean, sizes, pairs = query.out()[:, None], [], []

    def respond(_module: nn.Module, _query: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any):
        for new, old in ((k, call.k), (v, call.v)):
            pairs.append((new[:, :, num:], old[row, :, at[:, num:]].transpose(1, 2)))
        change = _swap(query, at[:, :num], k[:, :, :num], v[:, :, :num], near)
        # As large as the clean output, small changes survive 16-bit projections.
        size = _norm(clean) / _norm(change)
        sizes.append(torch.where(size.isfinite(), size, 1)[..., None, None])
        rows = [change * sizes[0], clean, clean, torch.zeros_like(clean), 2 * clean]
        return torch.cat(rows, 1).to(k.dtype)

    with override_attention(attended.block.module, respond):
        states = torch.cat([perturbed, hidden[row, at[:, num:]]], 1)
        out = attended.replay(site, states, at).to(clean.dtype)
    one, other, zero, two = out[:, num:].unbind(1)
    pairs += [(one, attended.out), (other, one), (two - zero, 2 * (one - zero))]
    pairs += [(clean[:, 0], call.output_at(tokens.last))]
    if not all(_agree(found, expected, hidden.dtype) for found, expected in pairs):
        return None
    return one, (out[:, :num] - zero[:, None]) / sizes[0][..., 0]


def _swap(query: LastQuery, at: Tensor, k: Tensor, v: Tensor, near: Near) -> Tensor:
    if near is None:
        return query.swap_each(at, k, v)
    return query.swap_sets(at, k, v, near.to(at.device))


def _norm(rows: Float[Tensor, "batch some heads d_value"]) -> Float[Tensor, "batch some"]:
    return rows.flatten(2).norm(dim=-1)


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are equal up to rounding; numbers that are not finite raise no doubt."""
    expected = expected.to(found)
    slack = max(ROUNDING, torch.finfo(dtype).eps ** 0.5) * expected.abs().max()
    return not bool(((found - expected).abs() > slack).any())


def _one_by_one(
    attended: AttentionRecord, tokens: VisualTokens, site: Site, perturbed: Tensor, near: Near
) -> Changes:
    """One attention call of the whole batch per token: right for any attention, and slow."""
    assert attended.out is not None
    hidden, changes = attended.entry(site).hidden, []
    near = torch.eye(tokens.at.shape[1], dtype=torch.bool)[None] if near is None else near
    for i in range(tokens.at.shape[1]):
        example, token = (near[:, i].to(tokens.real.device) & tokens.real).nonzero().unbind(1)
        states = hidden.clone()
        states[example, tokens.at[example, token]] = perturbed[example, token]
        with override_attention(attended.block.module, None):
            out = attended.replay(site, states)
        changes.append(gather_positions(out, tokens.last) - attended.out)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return attended.out.to(dtype), torch.stack(changes, 1).to(dtype)
