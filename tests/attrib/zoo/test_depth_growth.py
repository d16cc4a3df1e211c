import pytest
import torch

from attrib.data.scenes import make_scene, render
from attrib.forward.residual_writes import residual_writes
from attrib.model.vlm import VLM
from attrib.zoo.models import BUILDERS, NUM_LAYERS, build
from attrib.zoo.training.depth_growth import grow_depth, keep_lower_half


@pytest.fixture(params=BUILDERS)
def pair(request):
    """A model of half the depth with biases and gains as if trained, and what it grows into."""
    small, processor = build(request.param, seed=0, num_layers=NUM_LAYERS // 2)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.05 * torch.randn_like(p))
    grown = grow_depth(small, request.param, seed=1)
    return tuple(VLM(model.eval(), processor, request.param) for model in (small, grown))


@torch.no_grad()
def writes_of(vlm):
    picture = render(make_scene(3), 0)[0]
    batch = vlm.encode([picture], ["What color is the star? The answer is:"])
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.logits(batch)
    return writes


def test_growing_doubles_the_depth_and_keeps_everything_else(pair):
    small, grown = pair
    assert grown.num_layers == 2 * small.num_layers == NUM_LAYERS
    assert torch.equal(writes_of(small).embed, writes_of(grown).embed)
    h = torch.randn(3, small.d_model)
    assert torch.equal(small.unembed(h), grown.unembed(h))


def test_the_first_grown_layer_writes_half_of_what_its_original_wrote(pair):
    small, grown = (writes_of(vlm) for vlm in pair)
    torch.testing.assert_close(2 * grown.attn[:, 0], small.attn[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(grown.attn[:, 0], small.attn[:, 0])


def test_the_lower_half_computes_what_the_deep_model_has_computed_by_then(pair):
    _, deep = pair
    lower = VLM(keep_lower_half(deep.model, deep.name, seed=2).eval(), deep.processor)
    assert lower.num_layers == NUM_LAYERS // 2
    kept, whole = writes_of(lower), writes_of(deep)
    torch.testing.assert_close(kept.attn, whole.attn[:, : NUM_LAYERS // 2])
    torch.testing.assert_close(kept.mlp, whole.mlp[:, : NUM_LAYERS // 2])


def test_no_grown_layer_is_idle(pair):
    _, grown = pair
    writes = writes_of(grown)
    sizes = (writes.attn + writes.mlp).norm(dim=-1)[0]
    assert sizes.min() > 0.1 * sizes.max()
