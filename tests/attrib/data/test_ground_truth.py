"""Ground truth: a question is parsed to its kind, its answer and its target object."""

import random

import numpy as np
import pytest

from attrib.data import load
from attrib.data.scenes import Scene, SceneObject, make_scene
from attrib.data.scenes.ground_truth import (
    GroundTruth,
    ground_truth,
    ground_truths,
    parse_question,
    plain_words,
)
from attrib.data.scenes.questions import KINDS, sample_question
from attrib.data.scenes.vocabulary import Style
from attrib.errors import AttribError

SCENE = Scene((SceneObject("star", "red", 0), SceneObject("ring", "blue", 1)))


def test_the_target_object_is_parsed_from_any_wording():
    rng, style = random.Random(0), Style(alias_rate=0.5, nickname_rate=0.5, option_rate=0.5)
    for seed in range(100):
        scene = make_scene(seed)
        question = sample_question(scene, rng.choice(KINDS), rng, style)
        if question is not None:
            read = parse_question(question.text(rng, style), scene)
            assert read.target == question.target and read.form == question.form


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("What color is the star? The answer is:", "What color is the star?"),
        (
            "Call the ring kim and the star bob. Call bob max. The color of max is",
            "The color of the star is",
        ),
        ("What shape is red? A ring, B star, C heart.", "What shape is red?"),
    ],
)
def test_aliases_and_nicknames_become_plain_words(text, plain):
    assert plain_words(text) == plain


def test_the_target_object_determines_the_answer():
    found = parse_question("What shape is left of the ring?", SCENE)
    assert found.target == SCENE.objects[0] and found.answer == "star"
    assert parse_question("How many shapes are there?", SCENE).target is None


def test_masks_fit_the_image_and_the_target_is_one_of_the_objects():
    data = load("scenes-vqa", "test", limit=12)
    truths = ground_truths(data)
    assert set(truths) == {sample.id for sample in data}
    for sample in data:
        truth = truths[sample.id]
        pixels, masks = np.asarray(sample.request.image, float), truth.masks()
        assert masks.shape == (len(truth.scene.objects), *pixels.shape[:2])
        # Inside an object the picture has one colour, up to the noise of the rendering.
        assert all(pixels[mask].std(0).max() < 10 for mask in masks)
        if (asked := truth.target_object()) is not None:
            assert truth.scene.objects[asked] == truth.question.target


def test_questions_that_match_no_template_are_refused():
    assert parse_question("Is it raining?", SCENE) is None
    row = {"image": "scenes/1_0.png", "src": "Is it raining?", "pred": "no"}
    with pytest.raises(ValueError, match="matches no question template"):
        ground_truth(row)
    with pytest.raises(ValueError, match="names no scene"):
        ground_truth(row | {"image": "cat.jpg"})
    with pytest.raises(AttribError, match="scenes-vqa only"):
        ground_truths(load("scenes-captions", "test", limit=1))


def test_counting_has_no_target_object():
    question = parse_question("How many shapes are there?", SCENE)
    assert GroundTruth(SCENE, 0, question, "two").target_object() is None
