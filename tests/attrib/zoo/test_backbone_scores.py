import pytest
import torch

from attrib.model.vlm import VLM
from attrib.zoo import build
from attrib.zoo.evaluate import _ridge_accuracy, held_out_questions, layer_curves, score


@pytest.fixture(scope="module")
def untrained():
    model, processor = build("tiny-llava", seed=0, num_layers=3)
    return VLM(model.eval().requires_grad_(False), processor, "untrained")


def test_ridge_decodes_a_planted_class_and_nothing_from_noise():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (400,), generator=g)
    noise = torch.randn(400, 16, generator=g)
    planted = noise + 3 * torch.eye(16)[y]
    fit, test = slice(0, 300), slice(300, 400)
    assert _ridge_accuracy(planted[fit], y[fit], planted[test], y[test], 4) > 0.9
    assert _ridge_accuracy(noise[fit], y[fit], noise[test], y[test], 4) < 0.45


def test_held_out_questions_are_of_the_test_split_and_repeatable():
    asked = list(held_out_questions(30))
    assert {scene.split for scene, _, _ in asked} == {"test"}
    assert asked == list(held_out_questions(30))
    assert all(prompt.endswith(" The answer is:") for _, _, prompt in asked)


def test_an_untrained_model_scores_nothing(untrained):
    scores = score(untrained, 6)
    assert scores["vqa"] == (0, 6) and scores["facts"] == (0, 320)
    assert sum(n for name, (_, n) in scores.items() if name.startswith("vqa/")) == 6


def test_curves_have_one_number_per_layer_and_end_where_nothing_is_left_to_change(untrained):
    curves = layer_curves(untrained, count=4, train=30, test=30)
    assert all(len(curve) == untrained.num_layers for curve in curves.values())
    # The last layer's other positions reach no logit of the last token; its lens is the model.
    assert curves["kl visual"][-1] == curves["kl text"][-1] == 0
    assert curves["kl visual"][0] > 0 and curves["lens"][-1] == 1
