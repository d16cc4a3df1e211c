"""Which object of a scene a question is about, and where in the picture that object is.

The rows of the embedded questions hold words alone, as the files of real data do. Here the words
are read back: nicknames and made-up names become plain words, which fit one template, which put to
the scene has one answer and one object that the answer is read off.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool

from attrib.data.rows import SUFFIX
from attrib.data.samples import EditData
from attrib.data.scenes.edits import rows
from attrib.data.scenes.language import TEMPLATES, Kind, Question, pose
from attrib.data.scenes.names import ALIASES, NICKNAMES
from attrib.data.scenes.scenes import COLORS, PLACES, RELATIONS, SHAPES, Scene, make_scene, render
from attrib.errors import AttribError

_WORDS = {"shape": SHAPES, "color": COLORS, "place": PLACES, "relation": RELATIONS}
_PLAIN = {alias: concept for concept, aliases in ALIASES.items() for alias in aliases}
_KINDS: dict[str, Kind] = {
    "color": "color", "shape_by_color": "shape", "shape_by_place": "shape", "place": "place",
    "count": "count", "count_color": "count", "relation_shape": "relation",
    "relation_color": "relation", "object": "object",
}  # fmt: skip
_IMAGE = re.compile(r"scenes/(\d+)_(\d+)\.png")  # as `attrib.data.scenes.image_name` makes it
_OPTIONS = re.compile(r" A \w+, B \w+, C \w+\.$")


@dataclass(frozen=True)
class GroundTruth:
    """What a question about a rendered scene is about.

    Attributes:
        scene: the scene.
        render_seed: of its picture.
        question: what is asked, with the right answer in plain words and the object it is about.
        answer: the right answer to the words as they stand: a letter, of a multiple choice.
    """

    scene: Scene
    render_seed: int
    question: Question
    answer: str

    def masks(self) -> Bool[np.ndarray, "object height width"]:
        """The pixels of each object of the scene."""
        return render(self.scene, self.render_seed)[1]

    def target_object(self) -> int | None:
        """Which object of the scene is asked about; None where it is not a single one."""
        target = self.question.target
        return None if target is None else self.scene.objects.index(target)


def ground_truths(data: EditData) -> dict[str, GroundTruth]:
    """The ground truth of each sample's request, by the sample's id.

    Raises:
        AttribError: the data are not the embedded questions about scenes.
    """
    if data.name != "scenes-vqa":
        raise AttribError(
            f"{data.name}: where the object asked about is, is known for scenes-vqa only"
        )
    numbers = [sample.meta["row"] for sample in data]
    table = rows("vqa", data.split, data.provenance["seed"], limit=max(numbers, default=0) + 1)
    return {sample.id: ground_truth(table[i]) for sample, i in zip(data, numbers, strict=True)}


def ground_truth(row: dict[str, str]) -> GroundTruth:
    """The ground truth of a row of the embedded questions.

    Raises:
        ValueError: the row is not one of them.
    """
    named = _IMAGE.fullmatch(row["image"])
    if named is None:
        raise ValueError(f"{row['image']!r} names no scene")
    scene, render_seed = make_scene(int(named[1])), int(named[2])
    question = read_question(row["src"], scene)
    if question is None:
        raise ValueError(f"{row['src']!r} is no question that is asked about scenes")
    return GroundTruth(scene, render_seed, question, row["pred"])


def read_question(text: str, scene: Scene) -> Question | None:
    """The question that a wording stands for, put to a scene; None where there is no such one."""
    words = plain_words(text)
    for form, templates in TEMPLATES.items():
        for template in templates:
            if found := _pattern(template).fullmatch(words):
                slots = tuple((slot, word.lower()) for slot, word in found.groupdict().items())
                return pose(scene, _KINDS[form], form, slots)
    return None


def plain_words(text: str) -> str:
    """A wording without nicknames, made-up names, options and suffix."""
    text = _OPTIONS.sub("", text.removesuffix(SUFFIX))
    names: dict[str, str] = {}
    while text.startswith("Call "):
        sentence, text = text.split(". ", 1)
        if chained := re.fullmatch(r"Call (\w+) (\w+)", sentence):
            names[chained[2]] = names[chained[1]]
        given = re.findall(r"the (\w+) (\w+)", sentence)
        names |= {nickname: f"the {name}" for name, nickname in given}
    called = "|".join(NICKNAMES)
    text = re.sub(rf"\b({called})\b", lambda found: names[found[0]], text)
    return re.sub(r"\w+", lambda found: _PLAIN.get(found[0], found[0]), text)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    parts = [
        f"(?P<{piece}>{'|'.join(_WORDS[piece])})" if i % 2 else re.escape(piece)
        for i, piece in enumerate(pieces)
    ]
    return re.compile("".join(parts), re.IGNORECASE)
