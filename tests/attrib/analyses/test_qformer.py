"""Queries in patches: attention is the Q-Former's own, and shares nothing out that is not there."""

import pytest
import torch
from conftest import examples, picture, tiny_vlm
from torch.testing import assert_close

from attrib.analyses.heatmaps import heatmaps
from attrib.analyses.qformer import (
    find_qformer,
    patch_attention,
    patch_grid,
    project,
    queries_to_patches,
)
from attrib.errors import AttribError

WITH_QUERIES = ("blip2_opt", "blip2_llama", "instructblip")


@pytest.fixture(params=WITH_QUERIES)
def vlm(request):
    return tiny_vlm(request.param)


@pytest.fixture
def batch(vlm):
    return vlm.encode(*examples())


@torch.no_grad()
def seen_by_eager(vlm, batch):
    """What the Q-Former's last cross-attention returns beside its output when it runs eagerly."""
    qformer, found = find_qformer(vlm), []
    name = [n for n, _ in qformer.named_modules() if n.endswith("crossattention.attention")][-1]
    hook = qformer.get_submodule(name).register_forward_hook(
        lambda _module, _args, out: found.append(out[1])
    )
    before, qformer.config._attn_implementation = qformer.config._attn_implementation, "eager"
    vlm.logits(batch)
    hook.remove()
    qformer.config._attn_implementation = before
    return found[-1].mean(1)


def test_attention_is_that_of_the_last_cross_attention(vlm, batch):
    with torch.no_grad(), patch_attention(vlm) as seen:
        logits = vlm.logits(batch)
    expected = seen_by_eager(vlm, batch)
    assert seen[-1].shape == (2, 6, 4) and expected.shape == (2, 6, 5)
    assert_close(seen[-1], expected[..., 1:], atol=1e-6, rtol=1e-5)
    assert_close(vlm.logits(batch), logits)


def test_a_projection_distributes_the_scores(vlm, batch):
    scores = heatmaps(vlm, batch)
    picture = queries_to_patches(vlm, batch, scores)
    assert picture.shape == (3, vlm.num_layers, 4)
    assert picture[1].isnan().all() and picture[[0, 2]].isfinite().all()
    expected = seen_by_eager(vlm, batch)[..., 1:]
    assert_close(picture[[0, 2]], scores[[0, 2]] @ expected, atol=1e-6, rtol=1e-5)
    assert (picture[0].sum(-1) < scores[0].sum(-1)).all()  # the class token gets the rest


def test_a_query_that_attends_to_one_patch_scores_that_patch(batch):
    looks = torch.zeros(2, 6, 4)
    looks[:, :, 1] = 0.25
    looks[:, 5] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    scores = torch.zeros(3, 1, 6)
    scores[..., 5] = 0.5
    assert_close(project(scores, looks, batch)[0, 0], torch.tensor([0.0, 0.0, 0.0, 0.5]))


def test_patches_cover_the_image(vlm):
    grid = patch_grid(vlm, picture(60, 40))
    assert (grid.rows, grid.cols, grid.box) == (2, 2, (0.0, 0.0, 60.0, 40.0))


def test_models_without_a_q_former_are_refused():
    vlm = tiny_vlm("llava")
    assert find_qformer(vlm) is None
    with pytest.raises(AttribError, match="no Q-Former"):
        queries_to_patches(vlm, vlm.encode(*examples()), torch.zeros(3, 4, 4))
