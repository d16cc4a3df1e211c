"""The words of the synthetic world: names of concepts, nicknames, and text-only facts.

Shapes, colours and places have, besides their plain English word, made-up names ("aliases") spelled
in a few shared syllables. A model must memorise them, and no single syllable identifies a name: as
with people's names in large language models, the tokens of the question must be combined before the
image is read. A question may first introduce a nickname ("Call the star bob and the ring kim. What
color is bob?"): its tokens then refer to each other, in one to three steps, before they refer to
the image. With multiple choice ("A red, B blue, C green.") they are needed again afterwards.

The facts are of a made-up world and asked in the style of Natural Questions ("nq question: ..."),
like the text-locality items of E-VQA. Every land has one fact per relation, and each land belongs
to one split.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from attrib.data.scenes import COLORS, PLACES, SHAPES

SYLLABLES = ("ma", "ra", "ko", "ti", "lu", "ne", "so", "pi", "va", "du")
OPTIONS = ("A", "B", "C")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
ALIASES_PER_CONCEPT = 2
CONCEPTS = (*SHAPES, *COLORS, *PLACES)
NICKNAMES = ("bob", "kim", "sam", "lou", "pat", "max")
MAX_CHAIN = 3


def made_up_names(count: int, seed: int) -> list[str]:
    """Different names of three different syllables each, the same for the same seed."""
    rng = random.Random(seed)
    names: dict[str, None] = {}  # ordered
    while len(names) < count:
        names["".join(rng.sample(SYLLABLES, 3))] = None
    return list(names)


_NAMES = made_up_names(ALIASES_PER_CONCEPT * len(CONCEPTS), seed=7)
ALIASES: dict[str, tuple[str, ...]] = {
    concept: tuple(_NAMES[ALIASES_PER_CONCEPT * i : ALIASES_PER_CONCEPT * (i + 1)])
    for i, concept in enumerate(CONCEPTS)
}


@dataclass(frozen=True)
class Style:
    """How often a name is an alias, a shape has a nickname, and a question multiple choice."""

    alias_rate: float = 0.0
    nickname_rate: float = 0.0
    option_rate: float = 0.0


PLAIN = Style()
EVERYDAY = Style(alias_rate=0.5, nickname_rate=0.45, option_rate=0.15)
"""The style of the edits and of the backbones' scores."""


def introduce_nicknames(name: str, shape: str, rng: random.Random, style: Style) -> tuple[str, str]:
    """Sentences that give nicknames to two shapes ("Call the star bob and the ring kim").

    Args:
        name: word for the target shape in the first sentence.
        shape: its plain word; the other shape is a different one.
        rng: draws the other shape, the nicknames and the length of the chain.
        style: how the other shape is named.

    Returns:
        The sentences and the target's last nickname: chains ("Call bob max.") have one to three.
    """
    second, *chain = rng.sample(NICKNAMES, 1 + rng.randint(1, MAX_CHAIN))
    other = rng.choice([s for s in SHAPES if s != shape])
    given = [(f"the {name}", chain[0]), (f"the {name_of(other, rng, style.alias_rate)}", second)]
    rng.shuffle(given)
    sentences = ["Call {} {} and {} {}.".format(*given[0], *given[1])]
    sentences += [f"Call {old} {new}." for old, new in pairwise(chain)]
    return " ".join(sentences), chain[-1]


def name_of(concept: str, rng: random.Random, alias_rate: float) -> str:
    """The plain word of a concept, or one of its aliases with probability `alias_rate`."""
    if concept in ALIASES and rng.random() < alias_rate:
        return rng.choice(ALIASES[concept])
    return concept


NUM_LANDS = 80
_LANDS = {"train": range(48), "validation": range(48, 60), "test": range(60, NUM_LANDS)}
_QUESTIONS: dict[str, tuple[str, ...]] = {  # one per relation, with the possible answers
    "what do people eat in {land}": (
        *("bread", "rice", "fish", "cheese", "honey", "soup", "apple pie", "bean stew"),
    ),
    "who rules the land of {land}": (
        *("anna", "boris", "clara", "david", "elena", "frank", "king otto", "queen ida"),
    ),
    "which metal is found in {land}": (
        *("gold", "silver", "iron", "copper", "tin", "lead", "zinc", "nickel"),
    ),
    "which animal lives in {land}": (
        *("bear", "wolf", "lion", "eagle", "snake", "horse", "sea otter", "polar fox"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """A text-only question and its answer."""

    question: str  # as in the `loc` field: with the prefix, without the question mark
    answer: str
    land: str


def all_facts() -> list[Fact]:
    """Every fact of the world: land by land, one per relation."""
    rng = random.Random(11)
    used = {name for names in ALIASES.values() for name in names}
    lands = [n for n in made_up_names(NUM_LANDS + len(used), seed=13) if n not in used]
    return [
        Fact(f"nq question: {question.format(land=land)}", rng.choice(answers), land)
        for land in lands[:NUM_LANDS]
        for question, answers in _QUESTIONS.items()
    ]


def facts(split: str) -> list[Fact]:
    """The facts of a split; different splits have different lands."""
    if split not in _LANDS:
        raise ValueError(f"no facts for split {split!r}; splits: {', '.join(_LANDS)}")
    each = len(_QUESTIONS)
    return all_facts()[each * _LANDS[split].start : each * _LANDS[split].stop]


def alias_facts() -> list[Fact]:
    """The meaning of every alias as a text question; backbones are trained on it, never edited."""
    return [
        Fact(f"nq question: what is the plain word for {alias}", concept, alias)
        for concept, aliases in ALIASES.items()
        for alias in aliases
    ]


def fact_words() -> set[str]:
    """Every whole word of the facts' questions and answers, without the names of lands."""
    texts = [question.format(land="") for question in _QUESTIONS]
    texts += [answer for answers in _QUESTIONS.values() for answer in answers]
    return set(" ".join([*texts, "nq question: what is the plain word for"]).split())
