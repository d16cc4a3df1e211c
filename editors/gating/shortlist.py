"""Exact look-up among many edits by a learned gate, without comparing their visual tokens.

The gate's score of a pair is a network of one hidden layer over features of text, image and visual
tokens. Those of text and image are computed for all edits by two matrix products; the four features
of visual tokens, which are most of the cost, lie in known intervals. This gives an upper bound of
every score. Edits are then scored exactly in the order of their bounds, until no other edit can win
or tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from editors.adapters.lookup import newest_of_best, tied_from
from editors.adapters.sites import Gate
from editors.gating.classifier import (
    NEVER,
    NUM_PATCH_FEATURES,
    PATCH_HIGH,
    PATCH_LOW,
    PATCHES,
    EncodedInputs,
    GateNet,
)

SLACK = 1e-3  # of a bound: sums are taken in another order than in the network


@dataclass(frozen=True, eq=False)
class ScoreBounds:
    """Upper bounds of a network's scores, linear in what is known of the edits.

    The hidden layer sees products `a * b`, differences `|a - b|` and the cosine of embeddings. The
    products and the cosine are one matrix product of the edits with weights that hold the query.
    Units that lower the score are left out, which can only raise the bound.

    Attributes:
        product: Weights of products and cosines, those of text first.
        difference: Weights of differences.
        both: Bias where query and edit have an image: with the most that visual tokens can add.
        text: Bias where neither has one.
        out: Weights of the units in the score, all positive.
        bias: Bias of the score.
    """

    product: Float[Tensor, "hidden channel"]
    difference: Float[Tensor, "hidden channel"]
    both: Float[Tensor, " hidden"]
    text: Float[Tensor, " hidden"]
    out: Float[Tensor, " hidden"]
    bias: Float[Tensor, ""]

    @classmethod
    @torch.no_grad()
    def of(cls, net: GateNet) -> "ScoreBounds":
        """The bounds of a network in evaluation mode."""
        into, last = cast("nn.Linear", net.judge[0]), cast("nn.Linear", net.judge[-1])
        width, raises = net.sizes["width"], last.weight[0] > 0
        weight, start = into.weight[raises], into.bias[raises]
        each = 2 * width + 1
        parts = weight.split([each, each, NUM_PATCH_FEATURES, 1], 1)
        pairs, patch, seen = parts[:2], parts[2], parts[3][:, 0]
        low, high = (torch.tensor(ends).to(patch) for ends in (PATCH_LOW, PATCH_HIGH))
        most = torch.maximum(patch * low, patch * high).sum(1)
        return cls(
            torch.cat([p[:, :width] * width**0.5 + p[:, -1:] for p in pairs], 1),
            torch.cat([p[:, width : 2 * width] * width**0.25 for p in pairs], 1),
            start + seen + most,
            start,
            last.weight[0, raises],
            last.bias[0],
        )

    def __call__(
        self, query: Float[Tensor, " channel"], edits: Float[Tensor, "edit channel"], seen: bool
    ) -> Float[Tensor, " edit"]:
        """Bounds of one query's scores, from embeddings of text, and of image where it has one."""
        width = len(query)
        hidden = torch.addmm(
            self.both if seen else self.text, edits, (self.product[:, :width] * query).T
        )
        hidden = torch.addmm(hidden, (edits - query).abs_(), self.difference[:, :width].T)
        bound = hidden.relu_() @ self.out + self.bias
        return bound + SLACK * bound.abs().clamp(min=1.0)


@dataclass(frozen=True, eq=False)
class ShortlistIndex:
    """Indexes edits of a learned gate; its decisions are those of scoring every edit.

    They are **exact for any `shortlist`**: where the first edits of the list do not settle the
    decision, the next ones are scored, in the worst case all. The size only changes how long it
    takes. Of 1,000 edits of scenes-vqa at most 9 had a bound that reached the threshold (LOG.md).

    Attributes:
        gate: The gate; its network is in evaluation mode.
        net: The gate's network.
        edits: The features of the edits, oldest first; padded only when they are scored.
        shortlist: Number of edits that are scored exactly at a time, for each input.
    """

    gate: Gate
    net: GateNet
    edits: Sequence[Mapping[str, Tensor]]
    shortlist: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys, a copy of the edits' embeddings."""
        return self.keys.nbytes

    @cached_property
    def bounds(self) -> ScoreBounds:
        """The bounds of the network."""
        return ScoreBounds.of(self.net)

    @cached_property
    def keys(self) -> Float[Tensor, "edit channel"]:
        """The embeddings of text and image of every edit."""
        without = [{**one, PATCHES: one[PATCHES][:0]} for one in self.edits]
        encoded = EncodedInputs.of(without)
        return torch.cat([encoded.text_embedding, encoded.image_embedding], 1)

    @cached_property
    def seen(self) -> Bool[Tensor, " edit"]:
        """Which edits have an image."""
        return torch.tensor([len(one[PATCHES]) > 0 for one in self.edits])

    @torch.no_grad()
    def nearest(self, queries: Sequence[Mapping[str, Tensor]]) -> Int[Tensor, " query"]:
        """See `editors.adapters.lookup.EditIndex`."""
        encoded = EncodedInputs.of(queries)
        self.net.to(encoded.text_embedding.device)
        return newest_of_best(self._scores(encoded, self._bounds(encoded)), self.gate)

    def _bounds(self, queries: EncodedInputs) -> Float[Tensor, "query edit"]:
        keys, rows = self.keys.to(queries.text_embedding), []
        held = self.seen.to(keys.device)
        for text, image, count in zip(
            queries.text_embedding, queries.image_embedding, queries.count.tolist(), strict=True
        ):
            query = torch.cat([text, image]) if count else text
            bound = self.bounds(query, keys[:, : len(query)], count > 0)
            rows.append(torch.where(held == (count > 0), bound, NEVER))
        return torch.stack(rows)

    def _scores(
        self, queries: EncodedInputs, bounds: Float[Tensor, "query edit"]
    ) -> Float[Tensor, "query edit"]:
        """Exact scores of the edits that can win or tie, -inf for the others."""
        scores = torch.full_like(bounds, -torch.inf)
        left = bounds.masked_fill(bounds < self.gate.threshold, -torch.inf)
        while (rows := left.isfinite().any(1)).any():
            pairs = self._next(left, rows)
            scores[pairs[:, 0], pairs[:, 1]] = self._exact(queries, pairs)
            left[pairs[:, 0], pairs[:, 1]] = -torch.inf
            out = left < tied_from(scores.max(1, keepdim=True).values)
            left = left.masked_fill(out, -torch.inf)
        return scores

    def _next(
        self, left: Float[Tensor, "query edit"], rows: Bool[Tensor, " query"]
    ) -> Int[Tensor, "pair 2"]:
        """The pairs with the highest bounds among those that are left."""
        queries = rows.nonzero()
        found = left[rows].topk(min(self.shortlist, left.shape[1]), 1)
        pairs = torch.stack([queries.expand_as(found.indices), found.indices], -1)
        return pairs[found.values.isfinite()]

    def _exact(
        self, queries: EncodedInputs, pairs: Int[Tensor, "pair 2"]
    ) -> Float[Tensor, " pair"]:
        """Scores of pairs of a query and an edit."""
        chosen, where = pairs[:, 1].unique(return_inverse=True)
        edits = EncodedInputs.of([self.edits[i] for i in chosen.tolist()])
        return self.net.compare(queries[pairs[:, 0]], edits.to(pairs.device)[where])
