"""Which object of a scene a question is about, and where in the image that object is.

The rows of the embedded questions hold text only, as the files of real data do. It is parsed back:
nicknames and aliases are replaced by plain words, which match one template; applied to the scene,
the template has one answer and one target object.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool

from attrib.data.prompt_styles import SUFFIX
from attrib.data.samples import EditData
from attrib.data.scenes import (
    COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    Scene,
    parse_image_name,
    render,
)
from attrib.data.scenes.edits import edit_rows
from attrib.data.scenes.questions import TEMPLATES, Question, build_question
from attrib.data.scenes.vocabulary import ALIASES, NICKNAMES
from attrib.errors import AttribError

_WORDS = {"shape": SHAPES, "color": COLORS, "place": PLACES, "relation": RELATIONS}
_PLAIN = {alias: concept for concept, aliases in ALIASES.items() for alias in aliases}
_OPTIONS = re.compile(r" A \w+, B \w+, C \w+\.$")


@dataclass(frozen=True)
class GroundTruth:
    """A question about a rendered scene, parsed.

    Attributes:
        scene: the scene.
        render_seed: of its image.
        question: the question, with the right answer in plain words and the target object.
        answer: the right answer to the text as it is: a letter for multiple choice.
    """

    scene: Scene
    render_seed: int
    question: Question
    answer: str

    def masks(self) -> Bool[np.ndarray, "object height width"]:
        """The pixels of each object of the scene."""
        return render(self.scene, self.render_seed)[1]

    def target_object(self) -> int | None:
        """Index of the object that the question is about; None if it is not a single one."""
        target = self.question.target
        return None if target is None else self.scene.objects.index(target)


def ground_truths(data: EditData) -> dict[str, GroundTruth]:
    """The ground truth of each sample's request, by the sample's id.

    Raises:
        AttribError: the data are not the embedded questions about scenes.
    """
    if data.name != "scenes-vqa":
        raise AttribError(f"{data.name}: object positions are known for scenes-vqa only")
    last = max((sample.meta["row"] for sample in data), default=0)
    rows = edit_rows("vqa", data.split, data.provenance["seed"], limit=last + 1)
    return {sample.id: ground_truth(rows[sample.meta["row"]]) for sample in data}


def ground_truth(row: dict[str, str]) -> GroundTruth:
    """The ground truth of a row of the embedded questions.

    Raises:
        ValueError: the row is not one of them.
    """
    scene, render_seed = parse_image_name(row["image"])
    question = parse_question(row["src"], scene)
    if question is None:
        raise ValueError(f"{row['src']!r} matches no question template")
    return GroundTruth(scene, render_seed, question, row["pred"])


def parse_question(text: str, scene: Scene) -> Question | None:
    """The question about a scene that a text spells out; None if it matches no template."""
    words = plain_words(text)
    for form, templates in TEMPLATES.items():
        for template in templates:
            if found := _pattern(template).fullmatch(words):
                slots = tuple((slot, word.lower()) for slot, word in found.groupdict().items())
                return build_question(scene, form, slots)
    return None


def plain_words(text: str) -> str:
    """A question without nicknames, aliases, options and suffix."""
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
