"""What the embedded backbones are taught, in stages.

Everything at once does not train: a stage begins when the one before is mastered, measured on
fresh scenes. Stages only add; what was learned stays in the mix.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from attrib.data.easyedit import SUFFIX
from attrib.data.scenes.questions import (
    CAPTION_PROMPT,
    CAPTION_REPHRASES,
    KINDS,
    Kind,
    caption,
    sample_question,
)
from attrib.data.scenes.scene import Scene
from attrib.data.scenes.vocabulary import PLAIN, Fact, Style, alias_facts, all_facts
from attrib.zoo.training.packing import Segment, shuffled

CAPTION_WEIGHT = 0.3  # a caption has thirty answer tokens, a question one
QUESTIONS_PER_SCENE = 11
FACTS_PER_SCENE = 2
Depth = Literal["full", "half"]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum."""

    name: str
    kinds: tuple[Kind, ...]
    suffix_rate: float
    style: Style
    mastered: float
    """The next stage begins when the worst kind of question is answered this well."""
    at_least: int = 60
    """Steps that the stage takes even so."""
    depth: Depth = "half"
    """Whether the model has all its layers, or half as many (see `growth`)."""


_ONE_HOP: tuple[Kind, ...] = tuple(k for k in KINDS if k != "relation")
STAGES = (
    Stage("bare questions", _ONE_HOP, 0.0, PLAIN, 0.85, depth="full"),
    Stage("suffix", _ONE_HOP, 0.7, PLAIN, 0.85),
    Stage("aliases", _ONE_HOP, 0.8, Style(0.5), 0.85),
    Stage("nicknames", _ONE_HOP, 0.9, Style(0.5, 0.5), 0.85),
    # Learned slowly: begun here, where depth is scarce, and finished at full depth.
    Stage("options", _ONE_HOP, 0.9, Style(0.5, 0.5, 0.3), 0.7, at_least=300),
    Stage("relations", KINDS, 0.9, Style(0.5, 0.45, 0.25), 1.01, depth="full"),
)


@dataclass(frozen=True)
class CurriculumSampler:
    """Turns scenes into training segments for one tokenizer.

    Attributes:
        encode: text to token ids, without special tokens.
        before: ids between the picture and a text about it (a newline, or BOS).
        alone: ids before a text without a picture (BOS).
        end: the end-of-sequence id.
    """

    encode: Encode
    before: list[int]
    alone: list[int]
    end: int

    def lesson(self, scene: Scene, stage: Stage, rng: random.Random) -> list[Segment]:
        """Questions about a scene, its caption and some facts, in random order."""
        kinds: list[Kind] = [stage.kinds[i % len(stage.kinds)] for i in range(QUESTIONS_PER_SCENE)]
        questions = [self._question(scene, kind, stage, rng) for kind in kinds]
        facts = rng.sample(_FACTS, FACTS_PER_SCENE)
        return shuffled(
            [
                *filter(None, questions),
                self._caption(scene, rng),
                *(self._fact(fact) for fact in facts),
            ],
            rng,
        )

    def _question(
        self, scene: Scene, kind: Kind, stage: Stage, rng: random.Random
    ) -> Segment | None:
        question = sample_question(scene, kind, rng, stage.style)
        if question is None:
            return None
        suffix = SUFFIX if rng.random() < stage.suffix_rate else ""
        prompt = question.text(rng, stage.style) + suffix
        return self._segment(prompt, question.answer, kind, self.before)

    def _caption(self, scene: Scene, rng: random.Random) -> Segment:
        prompt = rng.choice((CAPTION_PROMPT, *CAPTION_REPHRASES))
        return self._segment(prompt, caption(scene), "caption", self.before, CAPTION_WEIGHT)

    def _fact(self, fact: Fact) -> Segment:
        return self._segment(f"{fact.question}?", fact.answer, "fact", self.alone)

    def _segment(
        self, prompt: str, answer: str, kind: str, lead: list[int], weight: float = 1.0
    ) -> Segment:
        ids = [*lead, *self.encode(prompt)]
        full = [*ids, *self.encode(f" {answer}"), self.end]
        return Segment(full, len(ids), kind, sees_picture=lead is self.before, weight=weight)


_FACTS = [*all_facts(), *alias_facts()]
