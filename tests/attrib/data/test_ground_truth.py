"""Ground truth: every embedded question is read back to the answer its row gives."""

import random

import numpy as np
import pytest

from attrib.data import load
from attrib.data.scenes import Scene, SceneObject, make_scene
from attrib.data.scenes.edits import rows
from attrib.data.scenes.ground_truth import (
    GroundTruth,
    ground_truth,
    ground_truths,
    plain_words,
    read_question,
)
from attrib.data.scenes.language import KINDS, ask
from attrib.data.scenes.names import OPTIONS, Style
from attrib.data.tables import DIGESTS, digest_of
from attrib.errors import AttribError

SCENE = Scene((SceneObject("star", "red", 0), SceneObject("ring", "blue", 1)))


def chosen(text, letter):
    """What a letter stands for in a multiple choice."""
    options = text.split(" A ")[1].rstrip(".").replace("B ", "").replace("C ", "").split(", ")
    return options[OPTIONS.index(letter)]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_every_question_is_read_back_to_its_answer(split):
    whole = rows("vqa", split)
    assert digest_of(whole) == DIGESTS["scenes-vqa", split]
    for row in whole:
        truth = ground_truth(row)
        answer = chosen(row["src"], row["pred"]) if " A " in row["src"] else row["pred"]
        assert truth.question.answer == answer and truth.question.kind == row["kind"], row["src"]


def test_the_object_asked_about_survives_any_wording():
    rng, style = random.Random(0), Style(alias_rate=0.5, nickname_rate=0.5, option_rate=0.5)
    for seed in range(200):
        scene = make_scene(seed)
        question = ask(scene, rng.choice(KINDS), rng, style)
        if question is not None:
            read = read_question(question.text(rng, style), scene)
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
def test_words_become_plain(text, plain):
    assert plain_words(text) == plain


def test_the_target_is_what_the_answer_is_read_off():
    found = read_question("What shape is left of the ring?", SCENE)
    assert found.target == SCENE.objects[0] and found.answer == "star"
    assert read_question("How many shapes are there?", SCENE).target is None


def test_masks_are_those_of_the_picture_and_the_asked_object_is_its_own():
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


def test_what_is_no_question_about_a_scene_is_said():
    assert read_question("Is it raining?", SCENE) is None
    row = {"image": "scenes/1_0.png", "src": "Is it raining?", "pred": "no"}
    with pytest.raises(ValueError, match="no question"):
        ground_truth(row)
    with pytest.raises(ValueError, match="names no scene"):
        ground_truth(row | {"image": "cat.jpg"})
    with pytest.raises(AttribError, match="scenes-vqa only"):
        ground_truths(load("scenes-captions", "test", limit=1))


def test_a_truth_without_a_single_object_says_so():
    question = read_question("How many shapes are there?", SCENE)
    assert GroundTruth(SCENE, 0, question, "two").target_object() is None
