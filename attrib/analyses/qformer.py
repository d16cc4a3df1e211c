"""Project scores of a Q-Former's queries onto image patches.

A query has no place in the image: it attends to all patches. A heatmap of such a model is one value
per query. This module distributes each query's value over the patches that it attends to in the
Q-Former's last cross-attention, mean over heads. The result shows where the queries look, not which
patches the answer depends on, and must be labelled as a projection.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.attention import AttentionCall, capture_calls
from attrib.model.batch import Batch, Grid, Picture
from attrib.model.patch_grid import find_grid
from attrib.model.vlm import VLM


def find_qformer(vlm: VLM) -> nn.Module | None:
    """The model's Q-Former, or None."""
    return next((m for n, m in vlm.model.named_modules() if n.endswith("qformer")), None)


@torch.no_grad()
def queries_to_patches(
    vlm: VLM, batch: Batch, scores: Float[Tensor, "batch layer query"]
) -> Float[Tensor, "batch layer patch"]:
    """Distribute scores of queries, such as `heatmaps`, over patches in reading order.

    A query's score is split in proportion to its attention; the share of the class token is
    dropped. NaN for examples without an image.

    Raises:
        AttribError: The model has no Q-Former, or its patches are not on a square grid.
    """
    with patch_attention(vlm) as captured:
        vlm.last_logits(batch)
    return project(scores, captured[-1], batch)


@contextmanager
def patch_attention(vlm: VLM) -> Iterator[list[Float[Tensor, "image query patch"]]]:
    """Capture the attention from queries to patches in the Q-Former's last cross-attention.

    Yields:
        A list whose last entry is set by a forward pass inside the context.
    """
    qformer = find_qformer(vlm)
    if qformer is None:
        raise AttribError(f"{vlm.name} has no Q-Former: its visual tokens have their own grid")
    cross_attention = {id(m) for n, m in qformer.named_modules() if "crossattention" in n}
    captured: list[Tensor] = []

    def listen(module: nn.Module, call: AttentionCall) -> None:
        if id(module) in cross_attention:
            queries = torch.arange(call.q.shape[2], device=call.q.device).expand(len(call.q), -1)
            row = replace(call, causal=False).row(queries)
            # The class token, if there is one, comes first.
            captured[:] = [row.mean(1)[..., -_num_patches(vlm) :]]

    with capture_calls(qformer, listen):
        yield captured


def patch_attention_if_any(vlm: VLM) -> AbstractContextManager[list[Tensor]]:
    """`patch_attention` for a model with a Q-Former; an empty list for others."""
    return nullcontext([]) if find_qformer(vlm) is None else patch_attention(vlm)


def project(
    scores: Float[Tensor, "batch layer query"],
    attention: Float[Tensor, "image query patch"],
    batch: Batch,
) -> Float[Tensor, "batch layer patch"]:
    """Distribute `scores` by captured attention; see `queries_to_patches`."""
    has_image = batch["visual"].any(1).to(scores.device)
    attention = attention.to(scores)
    patches = scores.new_full((*scores.shape[:2], attention.shape[-1]), torch.nan)
    patches[has_image] = scores[has_image][..., : attention.shape[1]] @ attention
    return patches


def pictures_of(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample]
) -> Sequence[Sequence[Picture]]:
    """The images of each sample with their visual tokens, or with the patches behind a Q-Former."""
    if find_qformer(vlm) is None:
        return batch.pictures
    every = slice(0, _num_patches(vlm))
    each = [sample.request.images for sample in samples]
    return [[Picture(every, patch_grid(vlm, image)) for image in images] for images in each]


def patch_grid(vlm: VLM, image: Image.Image) -> Grid | None:
    """Grid of the patches that a Q-Former attends to."""
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


qformer_picture = queries_to_patches  # former name
