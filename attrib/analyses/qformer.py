"""A picture for models whose visual tokens are the queries of a Q-Former.

A query has no place in the image: it gathers what it wants from all patches. So a heatmap of such a
model is one number per query. What this file adds is a projection, and must be labelled as such:
every query's number is shared out among the patches that the query attends to in the Q-Former's
last cross-attention, mean over heads. It shows where the queries that are read look in the end, not
which patches the answer depends on.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention import AttentionCall, override_attention
from attrib.model.batch import Batch, Grid
from attrib.model.patch_grid import find_grid
from attrib.model.vlm import VLM


def find_qformer(vlm: VLM) -> nn.Module | None:
    """The model's Q-Former, if its visual tokens come from one."""
    return next((m for n, m in vlm.model.named_modules() if n.endswith("qformer")), None)


@torch.no_grad()
def queries_to_patches(
    vlm: VLM, batch: Batch, scores: Float[Tensor, "batch layer query"]
) -> Float[Tensor, "batch layer patch"]:
    """Scores of queries, such as `heatmaps` gives, shared out among patches in reading order.

    A query's score goes to the patches as its attention does; what it gives to the class token is
    left out. NaN for examples without an image.

    Raises:
        AttribError: the model has no Q-Former, or its patches are not on a square grid.
    """
    with patch_attention(vlm) as seen:
        vlm.logits(batch)
    return project(scores, seen[-1], batch)


@contextmanager
def patch_attention(vlm: VLM) -> Iterator[list[Float[Tensor, "image query patch"]]]:
    """Yield a list, whose last entry a forward pass inside the context makes.

    It is the attention of the Q-Former's queries to the patches in its last cross-attention.
    """
    qformer = find_qformer(vlm)
    if qformer is None:
        raise AttribError(f"{vlm.name} has no Q-Former: its visual tokens have a grid of their own")
    crossing = {id(m) for n, m in qformer.named_modules() if "crossattention" in n}
    seen: list[Tensor] = []

    def respond(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any):
        out, _ = sdpa_attention_forward(module, q, k, v, mask, **more)
        if id(module) in crossing:
            call = AttentionCall(q, k, v, mask, float(more["scaling"]), False, out)
            queries = torch.arange(q.shape[2], device=q.device).expand(len(q), -1)
            # The class token comes first, where there is one.
            seen[:] = [call.row(queries).mean(1)[..., -_num_patches(vlm) :]]
        return out

    with override_attention(qformer, respond):
        yield seen


def project(
    scores: Float[Tensor, "batch layer query"],
    attention: Float[Tensor, "image query patch"],
    batch: Batch,
) -> Float[Tensor, "batch layer patch"]:
    """`scores` shared out by captured attention; see `queries_to_patches`."""
    has_image = batch["visual"].any(1).to(scores.device)
    attention = attention.to(scores)
    picture = scores.new_full((*scores.shape[:2], attention.shape[-1]), torch.nan)
    picture[has_image] = scores[has_image][..., : attention.shape[1]] @ attention
    return picture


def patch_grid(vlm: VLM, image: Image.Image) -> Grid | None:
    """Where the patches that a Q-Former attends to lie in an image."""
    config = _vision_config(vlm)
    return find_grid(
        vlm.processor.image_processor, image.size, _num_patches(vlm), config.patch_size
    )


def _num_patches(vlm: VLM) -> int:
    config = _vision_config(vlm)
    return (config.image_size // config.patch_size) ** 2


def _vision_config(vlm: VLM) -> Any:
    config = vlm.model.config.vision_config
    if not (isinstance(config.image_size, int) and isinstance(config.patch_size, int)):
        raise AttribError(f"{vlm.name}: the patches of its images are not on a square grid")
    return config


def patch_attention_if_any(vlm: VLM) -> AbstractContextManager[list[Tensor]]:
    """`patch_attention` of a model with a Q-Former; for others a list that stays empty."""
    return nullcontext([]) if find_qformer(vlm) is None else patch_attention(vlm)


def grids_of(vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> list[Grid | None]:
    """Where an example's visual tokens lie, or with a Q-Former the patches behind them."""
    if find_qformer(vlm) is None:
        return list(batch.grids)
    images = [sample.request.image for sample in samples]
    return [None if image is None else patch_grid(vlm, image) for image in images]
