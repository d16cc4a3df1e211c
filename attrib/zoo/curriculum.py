"""The curriculum of the embedded backbones, and the sampler of its training data.

Training on everything at once fails: a stage begins when the model has mastered the one before,
measured on fresh scenes. Stages only add; earlier content stays in the mix.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from attrib.data.prompt_styles import SUFFIX
from attrib.data.scenes import Scene
from attrib.data.scenes.questions import (
    CAPTION_PROMPT,
    CAPTION_REPHRASES,
    KINDS,
    Kind,
    caption,
    sample_question,
)
from attrib.data.scenes.vocabulary import PLAIN, Fact, Style, alias_facts, all_facts
from attrib.zoo import Backbone
from attrib.zoo.packing import Segment

CAPTION_WEIGHT = 0.3  # a caption has thirty answer tokens, a question one
QUESTIONS_PER_SCENE = 11
FACTS_PER_SCENE = 2
Depth = Literal["full", "half"]


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        name: for log lines.
        kinds: the kinds of questions.
        suffix_rate: share of prompts that end with " The answer is:".
        style: of the questions.
        mastered: accuracy on the worst kind of question at which the next stage begins.
        min_steps: length of the stage at least.
        depth: whether the model has all its layers or half of them (see `weight_surgery`).
    """

    name: str
    kinds: tuple[Kind, ...]
    suffix_rate: float
    style: Style
    mastered: float
    min_steps: int = 60
    depth: Depth = "half"


_ONE_HOP: tuple[Kind, ...] = tuple(k for k in KINDS if k != "relation")
STAGES = (
    Stage("bare questions", _ONE_HOP, 0.0, PLAIN, 0.85, depth="full"),
    Stage("suffix", _ONE_HOP, 0.7, PLAIN, 0.85),
    Stage("aliases", _ONE_HOP, 0.8, Style(0.5), 0.85),
    Stage("nicknames", _ONE_HOP, 0.9, Style(0.5, 0.5), 0.85),
    # Learned slowly: begun at half depth, finished at full depth.
    Stage("options", _ONE_HOP, 0.9, Style(0.5, 0.5, 0.3), 0.7, min_steps=300),
    Stage("relations", KINDS, 0.9, Style(0.5, 0.45, 0.25), 1.01, depth="full"),
)


_FACTS = [*all_facts(), *alias_facts()]


@dataclass(frozen=True)
class CurriculumSampler:
    """Turns scenes into training segments for one model.

    Attributes:
        encode: text to token ids, without special tokens.
        prefix: ids of the image, and of BOS where it precedes the image.
        after_image: ids between the image and a text about it (a newline, or BOS).
        bos: ids before a text without an image.
        eos: the end-of-sequence id.
    """

    encode: Callable[[str], list[int]]
    prefix: list[int]
    after_image: list[int]
    bos: list[int]
    eos: int

    @classmethod
    def of(cls, model: Backbone, processor: Any) -> "CurriculumSampler":
        """The sampler for a model's tokenizer and prompt format."""
        tokenizer = processor.tokenizer
        image, bos = model.config.image_token_id, tokenizer.bos_token_id
        encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        if hasattr(processor, "num_query_tokens"):  # BLIP-2 puts the image before BOS
            prefix, after_image = [image] * processor.num_query_tokens, [bos]
        else:
            prefix, after_image = [bos] + [image] * model.config.image_seq_length, encode("\n")
        return cls(encode, prefix, after_image, [bos], tokenizer.eos_token_id)

    def sample(self, scene: Scene, stage: Stage, rng: random.Random) -> list[Segment]:
        """Questions about a scene, its caption and some facts, in random order."""
        kinds: list[Kind] = [stage.kinds[i % len(stage.kinds)] for i in range(QUESTIONS_PER_SCENE)]
        questions = [self._question(scene, kind, stage, rng) for kind in kinds]
        facts = rng.sample(_FACTS, FACTS_PER_SCENE)
        segments = [segment for segment in questions if segment is not None]
        segments += [self._caption(scene, rng), *map(self._fact, facts)]
        return rng.sample(segments, len(segments))

    def _question(
        self, scene: Scene, kind: Kind, stage: Stage, rng: random.Random
    ) -> Segment | None:
        question = sample_question(scene, kind, rng, stage.style)
        if question is None:
            return None
        suffix = SUFFIX if rng.random() < stage.suffix_rate else ""
        prompt = question.text(rng, stage.style) + suffix
        return self._segment(prompt, question.answer, kind)

    def _caption(self, scene: Scene, rng: random.Random) -> Segment:
        prompt = rng.choice((CAPTION_PROMPT, *CAPTION_REPHRASES))
        return self._segment(prompt, caption(scene), "caption", weight=CAPTION_WEIGHT)

    def _fact(self, fact: Fact) -> Segment:
        return self._segment(f"{fact.question}?", fact.answer, "fact", sees_image=False)

    def _segment(
        self, prompt: str, answer: str, kind: str, sees_image: bool = True, weight: float = 1.0
    ) -> Segment:
        ids = [*(self.after_image if sees_image else self.bos), *self.encode(prompt)]
        full = [*ids, *self.encode(f" {answer}"), self.eos]
        return Segment(full, len(ids), kind, sees_image, weight)
