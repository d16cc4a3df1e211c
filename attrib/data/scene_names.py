"""What things in scenes are called: plain words, aliases, nicknames.

Shapes, colours and places have, besides their plain English word, made-up names ("aliases")
spelled in a few shared syllables. A model must know them by heart, and no single syllable gives
a name away: as with people's names in large language models, the words of the question have to be
put together before the picture can be asked. A question may also give a nickname first ("Call the
star bob and the ring kim. What color is bob?"): then even the words of the question point to each
other, in one or two steps, before they point to the picture.
"""

import random
from dataclasses import dataclass

from attrib.data.scenes import COLORS, PLACES, SHAPES

SYLLABLES = ("ma", "ra", "ko", "ti", "lu", "ne", "so", "pi", "va", "du")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
ALIASES_PER_CONCEPT = 2
CONCEPTS = (*SHAPES, *COLORS, *PLACES)
NICKNAMES = ("bob", "kim", "sam", "lou", "pat", "max")


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
    """How questions are worded: how often names are aliases, and shapes get nicknames."""

    alias_rate: float = 0.0
    nickname_rate: float = 0.0


PLAIN = Style()
EVERYDAY = Style(alias_rate=0.5, nickname_rate=0.35)
"""How the edits, the scores and the last lessons of the backbones are worded."""


def introduce(name: str, shape: str, rng: random.Random, style: Style) -> tuple[str, str]:
    """A sentence that gives two shapes nicknames, and the nickname of the one asked about.

    Half of the time the nickname is itself given another one.

    Args:
        name: what the shape asked about is called in the sentence.
        shape: its plain word, which the other shape must differ from.
        rng: draws the other shape and the nicknames.
        style: how the other shape is named.
    """
    asked, second, third = rng.sample(NICKNAMES, 3)
    other = rng.choice([s for s in SHAPES if s != shape])
    given = [(f"the {name}", asked), (f"the {call(other, rng, style.alias_rate)}", second)]
    rng.shuffle(given)
    sentence = "Call {} {} and {} {}.".format(*given[0], *given[1])
    if rng.random() < 0.5:
        return f"{sentence} Call {asked} {third}.", third
    return sentence, asked


def call(concept: str, rng: random.Random, alias_rate: float) -> str:
    """The plain word of a concept, or one of its aliases with probability `alias_rate`."""
    if concept in ALIASES and rng.random() < alias_rate:
        return rng.choice(ALIASES[concept])
    return concept
