"""Edits about scenes, as rows with the fields of the E-VQA and E-IC files.

`pred` is the right answer, the edit's target `alt` is another answer of the same kind. Besides
the eleven fields of those files a row has `kind` and `hard`: locality items close to the edit
(the same question about another image, another question about the same image).
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from attrib.data.scenes import COLORS, SHAPES, Scene, image_name, make_scene, scene_seeds
from attrib.data.scenes.questions import (
    CAPTION_PROMPT,
    CAPTION_REPHRASES,
    KINDS,
    TEMPLATES,
    Kind,
    Question,
    answers_of,
    as_multiple_choice,
    build_question,
    caption,
    sample_question,
)
from attrib.data.scenes.vocabulary import EVERYDAY, facts

Task = Literal["vqa", "captions"]
NUM_EDITS = {"train": 2000, "validation": 300, "test": 500}
# SHA-256 of the whole splits with seed 0, so that a few rows can be made without the others.
DIGESTS = {
    ("vqa", "train"): "2da025e52fc193930b95baaf3d46c66d5d1a658e0b48d875c69929af8c832413",
    ("vqa", "validation"): "f7aae408036e9a12e2a326450856d5673770c66a448ff5a5f72ceb71da6af2ef",
    ("vqa", "test"): "ff86e3ba98cdd1be4a210d3615ee5a8c90320f83651067e9ab22f038dff2b4de",
    ("captions", "train"): "92d9b024d6d452495c7f4a14def6fa998b34829871bfa18d9a88c9b3ac03f557",
    ("captions", "validation"): "bed8ca4c106328a2874b10ab76a5c154666d868b7f7c97f38507a0fbce2a954c",
    ("captions", "test"): "11dd52fc95266ab8e2e86da7d3fb74f089c84d3a609e73f9d0856eac3805dfff",
}
_SEED_STEP = 10**7  # keeps the scenes of different tasks and data seeds apart
_TASK_NUMBER = {"vqa": 0, "captions": 1}


def digest_of(rows: Sequence[object]) -> str:
    """SHA-256 of rows that are in no file."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def edit_rows(
    task: Task, split: str, seed: int = 0, limit: int | None = None
) -> list[dict[str, Any]]:
    """The edits of a split, determined by the seed.

    Args:
        task: "vqa" (E-VQA fields) or "captions" (E-IC fields).
        split: "train" (2,000 rows), "validation" (300) or "test" (500).
        seed: another seed gives other scenes and questions of the same split.
        limit: number of rows; they are the first ones of the whole split.
    """
    if task not in _TASK_NUMBER:
        raise ValueError(f"no scenes task {task!r}; tasks: {', '.join(_TASK_NUMBER)}")
    if split not in NUM_EDITS:
        raise ValueError(f"no scenes split {split!r}; splits: {', '.join(NUM_EDITS)}")
    rng = random.Random(f"{task}:{split}:{seed}")
    start = (2 * seed + _TASK_NUMBER[task]) * _SEED_STEP
    seeds = scene_seeds(split, start)  # pyright: ignore[reportArgumentType] - checked above
    make_row = _vqa_row if task == "vqa" else _caption_row
    known = facts(split)
    rng.shuffle(known)
    rows = []
    for i in range(NUM_EDITS[split] if limit is None else min(limit, NUM_EDITS[split])):
        fact = known[i % len(known)]
        row = make_row(seeds, rng, KINDS[i % len(KINDS)])
        rows.append({**row, "loc": fact.question, "loc_ans": fact.answer})
    return rows


def _vqa_row(seeds: Iterator[int], rng: random.Random, kind: Kind) -> dict[str, Any]:
    seed, scene, question = _next_question(seeds, rng, kind)
    first, second = rng.sample(range(len(TEMPLATES[question.form])), 2)
    wrong = [a for a in answers_of(kind, question.answer) if a != question.answer]
    src = question.text(rng, EVERYDAY, first)
    return {
        "src": src,
        "pred": question.answer,
        "alt": rng.choice(wrong),
        "rephrase": question.text(rng, EVERYDAY, second),
        **_images(seed),
        **_unrelated_item(seeds, rng),
        "kind": kind,
        "hard": [
            *_same_image(seed, scene, question, rng),
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
        **_unrelated_item(seeds, rng),
        "kind": "caption",
        "hard": [
            _hard(
                "same_question_other_image",
                image_name(other, 0),
                CAPTION_PROMPT,
                caption(make_scene(other)),
            )
        ],
    }


def _images(seed: int) -> dict[str, str]:
    return {"image": image_name(seed, 0), "image_rephrase": image_name(seed, 1)}


def _next_question(
    seeds: Iterator[int], rng: random.Random, kind: Kind
) -> tuple[int, Scene, Question]:
    """The next scene that allows a question of a kind, and one such question."""
    for seed in seeds:
        scene = make_scene(seed)
        if (question := sample_question(scene, kind, rng, EVERYDAY)) is not None:
            return seed, scene, question
    raise AssertionError("the stream of scenes is infinite")


def _unrelated_item(seeds: Iterator[int], rng: random.Random) -> dict[str, str]:
    seed, _, question = _next_question(seeds, rng, rng.choice(KINDS))
    return {
        "m_loc": image_name(seed, 0),
        "m_loc_q": question.text(rng, EVERYDAY),
        "m_loc_a": question.answer,
    }


def _same_image(
    seed: int, scene: Scene, edited: Question, rng: random.Random
) -> list[dict[str, str]]:
    """Another question of the same kind, and one of another kind, about the edited image."""
    found: dict[str, Question] = {}
    tries: list[Kind] = [*KINDS]
    tries.extend(edited.kind for _ in range(24))
    rng.shuffle(tries)
    for kind in tries:
        question = sample_question(scene, kind, rng, EVERYDAY)
        if question is not None and _independent(edited, question):
            same = "same" if question.kind == edited.kind else "other"
            found.setdefault(f"same_image_{same}_kind", question)
    return [
        _hard(name, image_name(seed, 0), question.text(rng, EVERYDAY), question.answer)
        for name, question in sorted(found.items())
    ]


def _independent(edited: Question, other: Question) -> bool:
    """Whether the answer to `other` is the same in a world where the edit is true."""
    if (edited.form, edited.slots) == (other.form, other.slots):
        return False
    if edited.kind == "count" or other.form == "count":
        return edited.form != other.form or edited.form != "count"
    if other.kind == "count" or {edited.kind, other.kind} == {"place", "relation"}:
        return False
    return edited.target != other.target


def _same_question(seeds: Iterator[int], question: Question, src: str) -> dict[str, str]:
    """The same words about another image in which they have an answer."""
    for seed in seeds:
        other = build_question(make_scene(seed), question.form, question.slots)
        if other is not None and question.options:
            other = as_multiple_choice(other, question.options)
        if other is not None:
            return _hard("same_question_other_image", image_name(seed, 0), src, other.answer)
    raise AssertionError("the stream of scenes is infinite")


def _hard(name: str, image: str, question: str, answer: str) -> dict[str, str]:
    return {"type": name, "image": image, "prompt": question, "target": answer}


def _repainted(scene: Scene, rng: random.Random) -> Scene:
    """Other shapes and colours in the same cells: a caption of the same length, other words."""
    shapes = [rng.choice([s for s in SHAPES if s != o.shape]) for o in scene.objects]
    colors = [rng.choice([c for c in COLORS if c != o.color]) for o in scene.objects]
    return Scene(
        tuple(
            replace(o, shape=shape, color=color)
            for o, shape, color in zip(scene.objects, shapes, colors, strict=True)
        )
    )
