"""Attention output at the last prompt token when visual tokens are perturbed: all at once, exactly.

Perturbing the state of one token changes, for a query at another position, only its key and value
(VisEdit, Eq. 8). With scores s, weights e = exp(s), Z = sum(e) and the output
a = sum(e v) / Z, swapping the key and value of token n gives

    a_n = (sum(e v) - e_n v_n + e'_n v'_n) / (Z - e_n + e'_n)

The change a_n - a is computed without subtracting two large numbers: in logarithms, and for the one
key that may hold nearly all of Z with the sums over the other keys.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attrib.analyses.visual_tokens import VisualTokens
from attrib.forward.attention import AttentionCall
from attrib.forward.attention_replay import AttentionRecord
from attrib.forward.hooks import StopForward, gather_positions, override_attention, own_attention
from attrib.model.precision import ONE_STEP
from attrib.vocabulary import NoiseSite

logger = logging.getLogger(__name__)
Neighbours = Bool[Tensor, "batch token token"] | None
Changes = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch token d_model"]]
LARGEST = 2**23  # elements of one tensor of attention weights: 32 MiB
TF32 = 2e-3  # relative error of float32 products on GPUs that round their factors to 10 bits


@dataclass(frozen=True, eq=False)
class LastQuery:
    """One query per example of an attention call, in float32 or better.

    Attributes:
        q: The query; query heads that share a key head are adjacent.
        k: All keys.
        v: All values.
        bias: Added to the scores: 0, or -inf at masked keys.
        scaling: Factor of the scores.
        softcap: Largest size of a scaled score; None without one.
    """

    q: Float[Tensor, "batch key_heads group d_head"]
    k: Float[Tensor, "batch key_heads keys d_head"]
    v: Float[Tensor, "batch key_heads keys d_value"]
    bias: Float[Tensor, "batch #heads keys"]
    scaling: float
    softcap: float | None = None

    @classmethod
    def of(cls, call: AttentionCall, last: Int[Tensor, " batch"]) -> "LastQuery":
        """The queries of a call at `last`."""
        row, last = torch.arange(len(last), device=call.q.device), last.to(call.q.device)
        dtype = torch.promote_types(call.q.dtype, torch.float32)
        q = call.q[row, :, last].to(dtype).unflatten(1, (call.k.shape[1], -1))
        bias = call.bias(last[:, None], dtype)[:, :, 0]
        return cls(q, call.k.to(dtype), call.v.to(dtype), bias, call.scaling, call.softcap)

    def scores(
        self,
        k: Float[Tensor, "batch key_heads some d_head"],
        bias: Float[Tensor, "batch #heads some"],
    ) -> Float[Tensor, "batch key_heads group some"]:
        """Scores of some keys."""
        scores = self.q @ k.to(self.q.dtype).transpose(-1, -2) * self.scaling
        if (cap := self.softcap) is not None:
            scores = cap * torch.tanh(scores / cap)
        return scores + (bias.reshape(scores.shape) if bias.shape[1] > 1 else bias[:, :, None])

    def out(self) -> Float[Tensor, "batch heads d_value"]:
        """The unperturbed output, before the output projection."""
        return (self.scores(self.k, self.bias).softmax(-1) @ self.v).flatten(1, 2)

    def swap_each(
        self,
        at: Int[Tensor, "batch token"],
        k: Float[Tensor, "batch key_heads token d_head"],
        v: Float[Tensor, "batch key_heads token d_value"],
    ) -> Float[Tensor, "batch token heads d_value"]:
        """Change of `out` when the key and value of one token are swapped, for each token.

        Args:
            at: Positions of the tokens among the keys.
            k: The new key of each token.
            v: The new value of each token.
        """
        scores = self.scores(self.k, self.bias)
        bias = _along(self.bias, at[:, None], -1)
        v, new = v.to(self.v.dtype), self.scores(k, bias)
        old, old_v = _along(scores, at[:, None, None], -1), _along(self.v, at[:, None, :, None], -2)
        top = scores.argmax(-1, keepdim=True)
        is_top = at[:, None, None] == top
        rest = scores.scatter(-1, top, -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        # Weight of all other keys; at most one key has more than half of the total.
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
        neighbours: Bool[Tensor, "batch token token"],
    ) -> Float[Tensor, "batch token heads d_value"]:
        """As `swap_each`, but for token n all tokens j with `neighbours[n, j]` are swapped.

        Each set has its own softmax, over the old keys outside it and the new ones inside.
        """
        scores, v = self.scores(self.k, self.bias), torch.cat([self.v, v.to(self.v.dtype)], 2)
        new = self.scores(k, _along(self.bias, at[:, None], -1))
        removed = torch.zeros(
            *neighbours.shape[:2], scores.shape[-1], dtype=torch.int8, device=at.device
        )
        removed.scatter_add_(2, at[:, None].expand_as(neighbours), neighbours.to(removed.dtype))
        allowed = torch.cat([removed == 0, neighbours], -1)
        both = torch.cat([scores, new], -1)[..., None, :]
        heads, clean = scores.shape[1] * scores.shape[2], self.out()[:, None]
        parts = []
        for some in allowed.split(max(1, LARGEST // (len(at) * heads * both.shape[-1])), 1):
            weights = both.masked_fill(~some[:, None, None], -torch.inf).softmax(-1)
            out = (weights.flatten(2, 3) @ v).unflatten(2, weights.shape[2:4])
            parts.append(out.flatten(1, 2).transpose(1, 2) - clean)
        return torch.cat(parts, 1)


def _along(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather along one axis, with the index broadcast over the others."""
    shape = list(values.shape)
    shape[axis] = index.shape[axis]
    return values.gather(axis, index.expand(shape))


def output_changes(
    record: AttentionRecord,
    tokens: VisualTokens,
    site: NoiseSite,
    perturbed: Float[Tensor, "batch token d_model"],
    neighbours: Neighbours,
) -> Changes:
    """Attention's clean output at the last prompt token, and its change per perturbed token.

    Args:
        record: The layer's attention in the clean pass.
        tokens: The visual tokens.
        site: Where the perturbed states go in.
        perturbed: Every token's perturbed state.
        neighbours: Which tokens are perturbed together; None for each token alone.
    """
    if (changes := _all_tokens(record, tokens, site, perturbed, neighbours)) is not None:
        return changes
    logger.warning(
        "layer %d: its attention is not a projection, attention and a projection; its heatmap is "
        "computed token by token, with one attention call per token", record.layer,
    )  # fmt: skip
    return _one_by_one(record, tokens, site, perturbed, neighbours)


def _all_tokens(
    record: AttentionRecord,
    tokens: VisualTokens,
    site: NoiseSite,
    perturbed: Tensor,
    neighbours: Neighbours,
) -> Changes | None:
    """One attention call on the perturbed tokens; None if the result cannot be trusted.

    The call is exact if a token's key and value depend only on its own state and position, and if
    the projection after the weighted mean of values is affine and the same at all positions. Four
    additional tokens with known results verify this.
    """
    call, hidden, num = record.call, record.at_site(site).hidden, tokens.at.shape[1]
    assert call is not None and record.out is not None
    last = tokens.last[:, None]
    at = torch.cat([tokens.at, last, tokens.at[:, :1], last, last], 1).to(hidden.device)
    query = LastQuery.of(call, tokens.last)
    clean, scales, pairs = query.out()[:, None], [], []

    def swap(_module: nn.Module, _query: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any):
        if k.shape[2] != at.shape[1]:  # keys of an earlier layer, at all positions (Gemma 4)
            raise StopForward(None)
        for new, old in ((k, call.k), (v, call.v)):
            known = gather_positions(old.transpose(1, 2), at[:, num:]).transpose(1, 2)
            pairs.append((new[:, :, num:], known))
        new = at[:, :num], k[:, :, :num], v[:, :, :num]
        if neighbours is None:
            change = query.swap_each(*new)
        else:
            change = query.swap_sets(*new, neighbours.to(at.device))
        # Scaled to the size of the clean output, small changes survive 16-bit projections.
        scale = clean.flatten(2).norm(dim=-1) / change.flatten(2).norm(dim=-1)
        scales.append(torch.where(scale.isfinite(), scale, 1)[..., None, None])
        rows = [change * scales[0], clean, clean, torch.zeros_like(clean), 2 * clean]
        return torch.cat(rows, 1).to(k.dtype)

    with override_attention(record.block.module, lambda _: swap):
        states = torch.cat([perturbed, gather_positions(hidden, at[:, num:])], 1)
        replayed: Tensor | None = record.replay(site, states, at)
    if replayed is None:
        return None
    out = replayed.to(clean.dtype)
    one, other, zero, two = out[:, num:].unbind(1)
    pairs += [(one, record.out), (other, one), (two - zero, 2 * (one - zero))]
    pairs += [(clean[:, 0], gather_positions(call.out, tokens.last))]
    # One answer for all: each would wait for the GPU.
    if torch.stack([_far(actual, expected, hidden.dtype) for actual, expected in pairs]).any():
        return None
    return one, (out[:, :num] - zero[:, None]) / scales[0][..., 0]


def _far(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> Bool[Tensor, ""]:
    """Whether two tensors differ by more than rounding; NaN counts as equal."""
    expected = expected.to(actual)
    tolerance = max(TF32, ONE_STEP[dtype]) * expected.abs().max()
    return ((actual - expected).abs() > tolerance).any()


def _one_by_one(
    record: AttentionRecord,
    tokens: VisualTokens,
    site: NoiseSite,
    perturbed: Tensor,
    neighbours: Neighbours,
) -> Changes:
    """One attention call of the whole batch per token: exact for any attention, and slow."""
    assert record.out is not None
    hidden, num, changes = record.at_site(site).hidden, tokens.at.shape[1], []
    together = torch.eye(num, dtype=torch.bool)[None] if neighbours is None else neighbours
    for i in range(num):
        example, token = (together[:, i].to(tokens.real.device) & tokens.real).nonzero().unbind(1)
        states = hidden.clone()
        states[example, tokens.at[example, token]] = perturbed[example, token]
        with override_attention(record.block.module, lambda _: own_attention):
            out = record.replay(site, states)
        changes.append(gather_positions(out, tokens.last) - record.out)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return record.out.to(dtype), torch.stack(changes, 1).to(dtype)
