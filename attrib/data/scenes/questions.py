"""Questions about scenes with their paraphrases, and captions."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from attrib.data.scenes import COLORS, PLACES, RELATIONS, SHAPES, Scene, SceneObject
from attrib.data.scenes.vocabulary import (
    NUMBERS,
    OPTIONS,
    PLAIN,
    Style,
    introduce_nicknames,
    name_of,
)

Kind = Literal["color", "shape", "place", "count", "relation", "object"]
Slots = tuple[tuple[str, str], ...]
"""Plain words that fill a template: ("shape", "star"), ("relation", "left of"), ..."""
KINDS: tuple[Kind, ...] = get_args(Kind)

# What a form of question asks about, and the attribute of its target that is the answer.
FORMS: dict[str, tuple[Kind, str]] = {
    "color": ("color", "color"),
    "shape_by_color": ("shape", "shape"),
    "shape_by_place": ("shape", "shape"),
    "place": ("place", "place"),
    "count": ("count", ""),
    "count_color": ("count", ""),
    "relation_shape": ("relation", "shape"),
    "relation_color": ("relation", "color"),
    "object": ("object", "name"),
}
CAPTION_PROMPT = "a photo of"
CAPTION_REPHRASES = ("a picture of", "an image of", "a snapshot of", "a photograph of")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {shape}?",
        "Which color does the {shape} have?",
        "What is the color of the {shape}?",
        "The {shape} has which color?",
        "Name the color of the {shape}.",
    ),
    "shape_by_color": (
        "What shape is {color}?",
        "Which shape is {color}?",
        "What is the {color} shape?",
        "Name the {color} shape.",
    ),
    "shape_by_place": (
        "What shape is in the {place}?",
        "Which shape is in the {place}?",
        "What is the shape in the {place}?",
        "Name the shape in the {place}.",
    ),
    "place": (
        "Where is the {shape}?",
        "In which place is the {shape}?",
        "What is the place of the {shape}?",
        "The {shape} is in which place?",
    ),
    "count": (
        "How many shapes are there?",
        "What is the number of shapes?",
        "The picture has how many shapes?",
        "Count the shapes in the picture.",
    ),
    "count_color": (
        "How many {color} shapes are there?",
        "What is the number of {color} shapes?",
        "The picture has how many {color} shapes?",
        "Count the {color} shapes in the picture.",
    ),
    "relation_shape": (
        "What shape is {relation} the {shape}?",
        "Which shape is {relation} the {shape}?",
        "Name the shape {relation} the {shape}.",
        "The shape {relation} the {shape} is which?",
    ),
    "relation_color": (
        "What color is the shape {relation} the {shape}?",
        "Which color does the shape {relation} the {shape} have?",
        "What is the color of the shape {relation} the {shape}?",
        "Name the color of the shape {relation} the {shape}.",
    ),
    "object": (
        "What is in the {place}?",
        "Which thing is in the {place}?",
        "What do you see in the {place}?",
        "Name the thing in the {place}.",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question about a scene, and its answer.

    Attributes:
        kind: what it asks about.
        form: key of TEMPLATES.
        slots: what fills the template.
        answer: a word, or the letter of the right option.
        target: the object that determines the answer, if it is a single one.
        options: of a multiple choice.
    """

    kind: Kind
    form: str
    slots: Slots
    answer: str
    target: SceneObject | None
    options: tuple[str, ...] = ()

    def text(self, rng: random.Random, style: Style, template: int | None = None) -> str:
        """The question by a template: by default a random one."""
        if template is None:
            template = rng.randrange(len(TEMPLATES[self.form]))
        words = TEMPLATES[self.form][template]
        if self.options:
            choices = zip(OPTIONS, self.options, strict=True)
            words += f" {', '.join(f'{letter} {option}' for letter, option in choices)}."
        names = {slot: name_of(concept, rng, style.alias_rate) for slot, concept in self.slots}
        if "shape" not in names or rng.random() >= style.nickname_rate:
            return words.format(**names)
        shape = dict(self.slots)["shape"]
        introduction, nickname = introduce_nicknames(names["shape"], shape, rng, style)
        named = re.sub(r"[Tt]he \{shape\}", nickname, words)
        return f"{introduction} {named.format(**names)}"


def answers_of(kind: Kind, like: str) -> Sequence[str]:
    """All answers of the same type as `like` to a question of this kind."""
    if kind == "object":
        return [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    for group in (tuple(COLORS), SHAPES, PLACES, NUMBERS, OPTIONS):
        if like in group:
            return group
    raise ValueError(f"{like!r} is no answer of kind {kind!r}")


def sample_question(
    scene: Scene, kind: Kind, rng: random.Random, style: Style = PLAIN
) -> Question | None:
    """A random well-posed question of a kind, or None if the scene allows none."""
    form, slots = _SAMPLE_SLOTS[kind](scene, rng)
    question = None if form is None else build_question(scene, form, slots)
    if question is None or kind == "object" or rng.random() >= style.option_rate:
        return question
    wrong = [a for a in answers_of(kind, question.answer) if a != question.answer]
    return as_multiple_choice(question, rng.sample([question.answer, *rng.sample(wrong, 2)], 3))


def as_multiple_choice(question: Question, options: Sequence[str]) -> Question | None:
    """The question as multiple choice, or None if its answer is not among the options."""
    if question.answer not in options:
        return None
    letter = OPTIONS[options.index(question.answer)]
    return replace(question, answer=letter, options=tuple(options))


def build_question(scene: Scene, form: str, slots: Slots) -> Question | None:
    """A given question about a scene, or None if it has no unique answer there."""
    names, (kind, attribute) = dict(slots), FORMS[form]
    if kind == "count":
        colors = [o.color for o in scene.objects]
        number = colors.count(names["color"]) if "color" in names else len(colors)
        return Question(kind, form, slots, NUMBERS[number], None)
    found = [
        o
        for o in scene.objects
        if all(getattr(o, slot) == name for slot, name in slots if slot != "relation")
    ]
    if len(found) != 1:
        return None
    target = scene.neighbour(found[0], names["relation"]) if "relation" in names else found[0]
    if target is None:
        return None
    return Question(kind, form, slots, getattr(target, attribute), target)


def _sample_shape(scene: Scene, rng: random.Random) -> tuple[str, Slots]:
    colors = [o.color for o in scene.objects]
    alone = [o for o in scene.objects if colors.count(o.color) == 1]
    if alone and rng.random() < 0.5:
        return "shape_by_color", (("color", rng.choice(alone).color),)
    return "shape_by_place", (("place", rng.choice(scene.objects).place),)


def _sample_count(scene: Scene, rng: random.Random) -> tuple[str, Slots]:
    if rng.random() < 0.5:
        return "count", ()
    # Mostly colours of the scene, or most answers would be zero.
    there = rng.random() < 0.75
    colors = [o.color for o in scene.objects] if there else list(COLORS)
    return "count_color", (("color", rng.choice(colors)),)


def _sample_relation(scene: Scene, rng: random.Random) -> tuple[str | None, Slots]:
    pairs = [
        (("relation", relation), ("shape", o.shape))
        for o in scene.objects
        for relation in RELATIONS
        if scene.neighbour(o, relation) is not None
    ]
    if not pairs:
        return None, ()
    return rng.choice(("relation_shape", "relation_color")), rng.choice(pairs)


_SAMPLE_SLOTS: dict[Kind, Callable[[Scene, random.Random], tuple[str | None, Slots]]] = {
    "color": lambda s, rng: ("color", (("shape", rng.choice(s.objects).shape),)),
    "shape": _sample_shape,
    "place": lambda s, rng: ("place", (("shape", rng.choice(s.objects).shape),)),
    "count": _sample_count,
    "relation": _sample_relation,
    "object": lambda s, rng: ("object", (("place", rng.choice(s.objects).place),)),
}


def caption(scene: Scene) -> str:
    """The caption of a scene: its objects in reading order."""
    parts = [
        f"{'an' if o.color == 'orange' else 'a'} {o.name} in the {o.place}" for o in scene.objects
    ]
    return ", ".join(parts[:-1]) + " and " + parts[-1]
