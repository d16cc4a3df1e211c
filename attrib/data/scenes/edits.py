"""Edits of what a model sees in scenes, as rows with the fields of the E-VQA and E-IC files.

The row's own answer is `pred`, the edit's target `alt` is another answer of the same kind. Besides
the eleven fields of those files a row has `kind` and `hard`: locality items close to the edit
(the same question about another picture, another question about the same picture).
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from attrib.data.scenes.facts import facts
from attrib.data.scenes.language import (
    CAPTION_PROMPT,
    CAPTION_REPHRASES,
    KINDS,
    TEMPLATES,
    Kind,
    Question,
    answers_of,
    ask,
    caption,
    choose,
    pose,
)
from attrib.data.scenes.names import EVERYDAY
from attrib.data.scenes.scenes import COLORS, SHAPES, Scene, image_name, make_scene, scene_seeds

Task = Literal["vqa", "captions"]
NUM_EDITS = {"train": 2000, "validation": 300, "test": 500}
_SEED_STEP = 10**7  # seeds of scenes of different tasks and data seeds never meet
_TASK_NUMBER = {"vqa": 0, "captions": 1}


def rows(task: Task, split: str, seed: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
    """The edits of a split, the same for the same seed.

    Args:
        task: "vqa" (E-VQA fields) or "captions" (E-IC fields).
        split: "train" (2,000 rows), "validation" (300) or "test" (500).
        seed: another seed gives other scenes and questions of the same split.
        limit: only the first rows; they are the same as without a limit.
    """
    if task not in _TASK_NUMBER:
        raise ValueError(f"no scenes task {task!r}; tasks: {', '.join(_TASK_NUMBER)}")
    if split not in NUM_EDITS:
        raise ValueError(f"no scenes split {split!r}; splits: {', '.join(NUM_EDITS)}")
    rng = random.Random(f"{task}:{split}:{seed}")
    start = (2 * seed + _TASK_NUMBER[task]) * _SEED_STEP
    seeds = scene_seeds(split, start)  # pyright: ignore[reportArgumentType] - checked above
    make = _vqa_row if task == "vqa" else _caption_row
    known = facts(split)
    rng.shuffle(known)
    made = []
    count = NUM_EDITS[split] if limit is None else min(limit, NUM_EDITS[split])
    for i in range(count):
        fact = known[i % len(known)]
        row = make(seeds, rng, KINDS[i % len(KINDS)])
        made.append({**row, "loc": fact.question, "loc_ans": fact.answer})
    return made


def _vqa_row(seeds: Iterator[int], rng: random.Random, kind: Kind) -> dict[str, Any]:
    seed, scene, question = _posed(seeds, rng, kind)
    first, second = rng.sample(range(len(TEMPLATES[question.form])), 2)
    wrong = [a for a in answers_of(kind, question.answer) if a != question.answer]
    src = question.worded(first, rng, EVERYDAY)
    return {
        "src": src,
        "pred": question.answer,
        "alt": rng.choice(wrong),
        "rephrase": question.worded(second, rng, EVERYDAY),
        **_images(seed),
        **_unrelated_picture(seeds, rng),
        "kind": kind,
        "hard": [
            *_same_picture(seed, scene, question, rng),
            _same_question(seeds, question, src),
        ],
    }


def _caption_row(seeds: Iterator[int], rng: random.Random, _kind: Kind) -> dict[str, Any]:
    seed = next(seeds)
    scene = make_scene(seed)
    other = next(seeds)
    return {
        "src": CAPTION_PROMPT,
        "pred": caption(scene),
        "alt": caption(_repainted(scene, rng)),
        "rephrase": rng.choice(CAPTION_REPHRASES),
        **_images(seed),
        **_unrelated_picture(seeds, rng),
        "kind": "caption",
        "hard": [
            {
                "type": "same_question_other_image",
                "image": image_name(other, 0),
                "prompt": CAPTION_PROMPT,
                "target": caption(make_scene(other)),
            }
        ],
    }


def _images(seed: int) -> dict[str, str]:
    return {"image": image_name(seed, 0), "image_rephrase": image_name(seed, 1)}


def _posed(seeds: Iterator[int], rng: random.Random, kind: Kind) -> tuple[int, Scene, Question]:
    """The next scene that allows a question of a kind, and one such question."""
    for seed in seeds:
        scene = make_scene(seed)
        if (question := ask(scene, kind, rng, EVERYDAY)) is not None:
            return seed, scene, question
    raise AssertionError("the stream of scenes has no end")


def _unrelated_picture(seeds: Iterator[int], rng: random.Random) -> dict[str, str]:
    seed, _, question = _posed(seeds, rng, rng.choice(KINDS))
    return {
        "m_loc": image_name(seed, 0),
        "m_loc_q": question.text(rng, EVERYDAY),
        "m_loc_a": question.answer,
    }


def _same_picture(
    seed: int, scene: Scene, edited: Question, rng: random.Random
) -> list[dict[str, str]]:
    """Another question of the same kind, and one of another kind, about the edited picture."""
    found: dict[str, Question] = {}
    tries: list[Kind] = [*KINDS]
    tries.extend(edited.kind for _ in range(24))
    rng.shuffle(tries)
    for kind in tries:
        question = ask(scene, kind, rng, EVERYDAY)
        if question is not None and _independent(edited, question):
            same = "same" if question.kind == edited.kind else "other"
            found.setdefault(f"same_image_{same}_kind", question)
    return [
        _hard(name, image_name(seed, 0), question.text(rng, EVERYDAY), question.answer)
        for name, question in sorted(found.items())
    ]


def _independent(edited: Question, other: Question) -> bool:
    """Whether the answer to `other` stays as it is in a world where the edit is true."""
    if (edited.form, edited.slots) == (other.form, other.slots):
        return False
    if edited.kind == "count" or other.form == "count":
        return edited.form != other.form or edited.form != "count"
    if other.kind == "count" or (
        "place" in (edited.kind, other.kind)
        and "relation"
        in (
            edited.kind,
            other.kind,
        )
    ):
        return False
    return edited.target != other.target


def _same_question(seeds: Iterator[int], question: Question, src: str) -> dict[str, str]:
    """The same words about another picture in which they have an answer."""
    for seed in seeds:
        posed = pose(make_scene(seed), question.kind, question.form, question.slots)
        if posed is not None and question.options:
            posed = choose(posed, question.options)
        if posed is not None:
            return _hard("same_question_other_image", image_name(seed, 0), src, posed.answer)
    raise AssertionError("the stream of scenes has no end")


def _hard(name: str, image: str, question: str, answer: str) -> dict[str, str]:
    return {"type": name, "image": image, "prompt": question, "target": answer}


def _repainted(scene: Scene, rng: random.Random) -> Scene:
    """Other shapes and colours in the same cells: a caption as long, with other words."""
    shapes = [rng.choice([s for s in SHAPES if s != o.shape]) for o in scene.objects]
    colors = [rng.choice([c for c in COLORS if c != o.color]) for o in scene.objects]
    return Scene(
        tuple(
            replace(o, shape=shape, color=color)
            for o, shape, color in zip(scene.objects, shapes, colors, strict=True)
        )
    )
