"""Heatmaps of several queries: `attrib.heatmaps` for each generated token, in one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.analyses.heatmaps import Perturbation, map_of_layer
from attrib.analyses.visual_tokens import VisualTokens
from attrib.forward.attention_replay import AttentionRecord, each_attention
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


@contextmanager
def query_heatmaps(
    vlm: VLM, batch: Batch, queries: Int[Tensor, "batch query"], how: Perturbation
) -> Iterator[dict[int, Tensor]]:
    """Keep the heatmap of each layer for several query positions during the pass inside.

    Args:
        vlm: The model.
        batch: One prompt with its images, with or without tokens of an answer.
        queries: Positions of the queries, all after the last visual token.
        how: How visual states are perturbed; every query has the same noise.

    Yields:
        A dict that the pass fills: layer -> Float "batch query visual", as
        `attrib.heatmaps` gives it for a prompt that ends at the query.
    """
    tokens, maps = VisualTokens.of(batch), dict[int, Tensor]()
    layer_map = map_of_layer(vlm, batch, how)

    def process(record: AttentionRecord) -> None:
        out = record.out
        assert out is not None
        each = []
        for i in range(queries.shape[1]):
            one, at = replace(record, out=out[:, i]), replace(tokens, last=queries[:, i].long())
            each.append(layer_map(one, at))
        maps[record.layer] = torch.stack(each, 1)

    with each_attention(vlm, queries, range(vlm.num_layers), process):
        yield maps
