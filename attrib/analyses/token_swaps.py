"""What a layer's attention writes at the last prompt token when visual tokens are perturbed."""

import logging
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrib.analyses.key_value_swap import LastQuery
from attrib.analyses.visual_tokens import VisualTokens
from attrib.forward.attention_functions import attending_by
from attrib.forward.attention_replay import Attended, Site
from attrib.forward.residual import pick

logger = logging.getLogger(__name__)
Near = Bool[Tensor, "batch token token"] | None
Changes = tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch token d_model"]]
ROUNDING = 0.01  # of matrix products, also in reduced precision; what is wrong is so by far more


def output_changes(
    attended: Attended,
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
    attended: Attended, tokens: VisualTokens, site: Site, perturbed: Tensor, near: Near
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

    with attending_by(attended.block.module, respond):
        states = torch.cat([perturbed, hidden[row, at[:, num:]]], 1)
        out = attended.rerun(site, states, at).to(clean.dtype)
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
    attended: Attended, tokens: VisualTokens, site: Site, perturbed: Tensor, near: Near
) -> Changes:
    """One attention call of the whole batch per token: right for any attention, and slow."""
    assert attended.out is not None
    hidden, changes = attended.entry(site).hidden, []
    near = torch.eye(tokens.at.shape[1], dtype=torch.bool)[None] if near is None else near
    for i in range(tokens.at.shape[1]):
        example, token = (near[:, i].to(tokens.real.device) & tokens.real).nonzero().unbind(1)
        states = hidden.clone()
        states[example, tokens.at[example, token]] = perturbed[example, token]
        with attending_by(attended.block.module, None):
            out = attended.rerun(site, states)
        changes.append(pick(out, tokens.last) - attended.out)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return attended.out.to(dtype), torch.stack(changes, 1).to(dtype)
