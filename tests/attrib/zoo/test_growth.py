import pytest
import torch

from attrib.data.scenes import make_scene, render
from attrib.vlm import VLM
from attrib.zoo.growth import grow
from attrib.zoo.models import BUILDERS, NUM_LAYERS, build


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_growing_doubles_the_depth_and_leaves_the_function_as_it_was(name):
    small, processor = build(name, seed=0, num_layers=NUM_LAYERS // 2)
    for p in small.parameters():
        p.add_(0.05 * torch.randn_like(p))  # biases and gains of a trained model
    grown = grow(small, name, seed=1)
    vlm = VLM(small.eval(), processor)
    batch = vlm.encode([_picture()], ["What color is the star? The answer is:"])
    deep = VLM(grown.eval(), processor)
    assert deep.num_layers == 2 * vlm.num_layers == NUM_LAYERS
    torch.testing.assert_close(deep.logits(batch), vlm.logits(batch), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_grown_layer_is_not_dead_once_its_outputs_move():
    small, processor = build("tiny-llava", seed=0, num_layers=NUM_LAYERS // 2)
    grown = VLM(grow(small, "tiny-llava", seed=1).eval(), processor)
    batch = grown.encode([_picture()], ["What color is the star? The answer is:"])
    before = grown.logits(batch)
    grown.layers[0].mlp.down_proj.weight.normal_(std=0.05)
    assert not torch.equal(grown.logits(batch), before)


def _picture():
    return render(make_scene(3), 0)[0]
