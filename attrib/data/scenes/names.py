"""What things in scenes are called: plain words, aliases, nicknames.

Shapes, colours and places have, besides their plain English word, made-up names ("aliases")
spelled in a few shared syllables. A model must know them by heart, and no single syllable gives
a name away: as with people's names in large language models, the words of the question have to be
put together before the picture can be asked. A question may also give a nickname first ("Call the
star bob and the ring kim. What color is bob?"): then even the words of the question point to each
other, in one to three steps, before they point to the picture. With multiple choice ("A red,
B blue, C green.") the words are needed once more after the picture has been read.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from attrib.data.scenes.scenes import COLORS, PLACES, SHAPES

SYLLABLES = ("ma", "ra", "ko", "ti", "lu", "ne", "so", "pi", "va", "du")
OPTIONS = ("A", "B", "C")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
ALIASES_PER_CONCEPT = 2
CONCEPTS = (*SHAPES, *COLORS, *PLACES)
NICKNAMES = ("bob", "kim", "sam", "lou", "pat", "max")
LONGEST_CHAIN = 3


def made_up_names(count: int, seed: int) -> list[str]:
    """Different names of three different syllables each, the same for the same seed."""
    rng = random.Random(seed)
    names: dict[str, None] = {}  # a dict keeps the order in which names came up
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
    """How questions are put: how often names are aliases, shapes get nicknames, answers options."""

    alias_rate: float = 0.0
    nickname_rate: float = 0.0
    option_rate: float = 0.0


PLAIN = Style()
EVERYDAY = Style(alias_rate=0.5, nickname_rate=0.45, option_rate=0.15)
"""How the edits, the scores and the last lessons of the backbones are worded."""


def introduce(name: str, shape: str, rng: random.Random, style: Style) -> tuple[str, str]:
    """Sentences that give two shapes nicknames, and the nickname to ask for one of them by.

    One to three nicknames lead there, equally often: "Call the star bob ... Call bob max."

    Args:
        name: what the shape asked about is called in the first sentence.
        shape: its plain word, which the other shape must differ from.
        rng: draws the other shape, the nicknames and the number of steps.
        style: how the other shape is named.
    """
    second, *chain = rng.sample(NICKNAMES, 1 + rng.randint(1, LONGEST_CHAIN))
    other = rng.choice([s for s in SHAPES if s != shape])
    given = [(f"the {name}", chain[0]), (f"the {call(other, rng, style.alias_rate)}", second)]
    rng.shuffle(given)
    sentences = ["Call {} {} and {} {}.".format(*given[0], *given[1])]
    sentences += [f"Call {old} {new}." for old, new in pairwise(chain)]
    return " ".join(sentences), chain[-1]


def call(concept: str, rng: random.Random, alias_rate: float) -> str:
    """The plain word of a concept, or one of its aliases with probability `alias_rate`."""
    if concept in ALIASES and rng.random() < alias_rate:
        return rng.choice(ALIASES[concept])
    return concept
