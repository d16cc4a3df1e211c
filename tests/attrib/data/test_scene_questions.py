import random
import re
from collections import Counter

import pytest

from attrib.data.scenes import Scene, SceneObject, make_scene
from attrib.data.scenes.questions import (
    KINDS,
    TEMPLATES,
    answers_of,
    as_multiple_choice,
    build_question,
    caption,
    sample_question,
)
from attrib.data.scenes.vocabulary import (
    ALIASES,
    CONCEPTS,
    EVERYDAY,
    NICKNAMES,
    NUM_LANDS,
    OPTIONS,
    PLAIN,
    Style,
    all_facts,
    facts,
)

SCENE = Scene(
    (
        SceneObject("circle", "red", 0),
        SceneObject("star", "blue", 1),
        SceneObject("ring", "red", 4),
    )
)


@pytest.mark.parametrize(
    ("kind", "form", "slots", "answer"),
    [
        ("color", "color", (("shape", "star"),), "blue"),
        ("shape", "shape_by_color", (("color", "blue"),), "star"),
        ("shape", "shape_by_place", (("place", "center"),), "ring"),
        ("place", "place", (("shape", "circle"),), "northwest"),
        ("count", "count", (), "three"),
        ("count", "count_color", (("color", "red"),), "two"),
        ("count", "count_color", (("color", "white"),), "zero"),
        ("relation", "relation_shape", (("relation", "left of"), ("shape", "star")), "circle"),
        ("relation", "relation_color", (("relation", "below"), ("shape", "star")), "red"),
        ("object", "object", (("place", "north"),), "blue star"),
    ],
)
def test_answers_follow_from_the_scene(kind, form, slots, answer):
    question = build_question(SCENE, form, slots)
    assert (question.kind, question.answer) == (kind, answer)


@pytest.mark.parametrize(
    ("form", "slots"),
    [
        ("shape_by_color", (("color", "red"),)),  # two are red
        ("color", (("shape", "heart"),)),  # none there
        ("relation_shape", (("relation", "above"), ("shape", "star"))),
    ],
)
def test_a_question_without_a_unique_answer_is_none(form, slots):
    assert build_question(SCENE, form, slots) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampled_question_has_an_allowed_answer(kind):
    rng = random.Random(0)
    asked = [
        q for seed in range(300) if (q := sample_question(make_scene(seed), kind, rng, EVERYDAY))
    ]
    assert len(asked) > 100
    for question in asked:
        assert question.answer in answers_of(kind, question.answer)
        assert "{" not in question.text(rng, EVERYDAY)


def test_every_form_has_at_least_four_paraphrases():
    assert all(len(set(group)) >= 4 for group in TEMPLATES.values())


def test_aliases_are_unique_and_share_their_syllables():
    names = [name for group in ALIASES.values() for name in group]
    assert len(set(names)) == len(names) == 2 * len(CONCEPTS)
    for k in range(3):
        syllables = {name[2 * k : 2 * k + 2] for name in names}
        assert len(syllables) < len(names) / 4


def test_an_alias_replaces_the_name():
    question = sample_question(make_scene(0), "color", random.Random(1))
    plain = question.text(random.Random(0), PLAIN, template=0)
    hidden = question.text(random.Random(0), Style(alias_rate=1.0), template=0)
    shape = dict(question.slots)["shape"]
    assert shape in plain and any(name in hidden for name in ALIASES[shape])


def test_a_nickname_is_introduced_before_it_is_asked_about():
    question = sample_question(make_scene(0), "place", random.Random(1))
    shape = dict(question.slots)["shape"]
    steps = Counter()
    for seed in range(60):
        text = question.text(random.Random(seed), Style(nickname_rate=1.0), template=0)
        given = dict(re.findall(r"(the \w+|\w+) (\w+)(?: and|\.)", text.replace("Call ", "")))
        meaning = {nickname: name for name, nickname in given.items()}
        (asked,) = [n for n in NICKNAMES if text.endswith(f" {n}?")]
        way = [asked]
        while way[-1] in NICKNAMES:
            way.append(meaning[way[-1]])
        assert way[-1] == f"the {shape}"
        steps[len(way) - 1] += 1
    assert set(steps) == {1, 2, 3} and min(steps.values()) > 8  # all lengths of the way occur


def test_a_multiple_choice_is_answered_by_the_letter_of_the_answer():
    style, rng = Style(option_rate=1.0), random.Random(0)
    letters = Counter()
    for seed in range(200):
        for kind in KINDS:
            if (question := sample_question(make_scene(seed), kind, rng, style)) is None:
                continue
            plain = build_question(make_scene(seed), question.form, question.slots).answer
            if kind == "object":  # answers of two words have no letter
                assert question.answer == plain and not question.options
                continue
            assert question.options[OPTIONS.index(question.answer)] == plain
            assert len(set(question.options)) == len(OPTIONS)
            assert f"{question.answer} {plain}" in question.text(rng, style)
            letters[question.answer] += 1
    assert min(letters.values()) > 0.25 * letters.total()  # no letter is the better guess


def test_options_must_contain_the_answer():
    question = build_question(SCENE, "color", (("shape", "star"),))
    assert as_multiple_choice(question, ["red", "green", "white"]) is None
    assert as_multiple_choice(question, ["red", "blue", "white"]).answer == "B"


def test_a_caption_names_objects_in_reading_order():
    assert caption(SCENE) == (
        "a red circle in the northwest, a blue star in the north and a red ring in the center"
    )


def test_there_are_enough_facts_and_splits_share_no_land():
    assert len(all_facts()) == 4 * NUM_LANDS >= 200
    lands = [{f.land for f in facts(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, lands)) == len(set.union(*lands)) == NUM_LANDS


def test_facts_of_an_unknown_split_are_refused():
    with pytest.raises(ValueError, match="no facts for split 'backbone'"):
        facts("backbone")
