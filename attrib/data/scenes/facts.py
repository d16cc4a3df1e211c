"""Text-only facts of a made-up world: what the embedded backbones know without a picture.

They are asked in the manner of Natural Questions ("nq question: ..."), like the text locality
items of E-VQA. Every land has one fact per relation; lands are dealt to the splits, so that no
split asks about a land of another.
"""

import random
from dataclasses import dataclass

from attrib.data.scenes.names import ALIASES, made_up_names

NUM_LANDS = 80
_SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
_RELATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "food": (
        "what do people eat in {land}",
        ("bread", "rice", "fish", "cheese", "honey", "soup", "apple pie", "bean stew"),
    ),
    "ruler": (
        "who rules the land of {land}",
        ("anna", "boris", "clara", "david", "elena", "frank", "king otto", "queen ida"),
    ),
    "metal": (
        "which metal is found in {land}",
        ("gold", "silver", "iron", "copper", "tin", "lead", "zinc", "nickel"),
    ),
    "animal": (
        "which animal lives in {land}",
        ("bear", "wolf", "lion", "eagle", "snake", "horse", "sea otter", "polar fox"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """A question without a picture, and its answer."""

    question: str  # as in the `loc` field: with the prefix, without the question mark
    answer: str
    land: str


def all_facts() -> list[Fact]:
    """Every fact of the world: `NUM_LANDS` lands times four relations."""
    rng = random.Random(11)
    used = {name for names in ALIASES.values() for name in names}
    lands = [n for n in made_up_names(NUM_LANDS + len(used), seed=13) if n not in used]
    return [
        Fact(f"nq question: {question.format(land=land)}", rng.choice(answers), land)
        for land in lands[:NUM_LANDS]
        for question, answers in _RELATIONS.values()
    ]


def facts(split: str) -> list[Fact]:
    """The facts that a split asks about; the lands of different splits are different."""
    if split not in _SHARES:
        raise ValueError(f"no facts for split {split!r}; splits: {', '.join(_SHARES)}")
    everything = all_facts()
    start = 0.0
    for name, share in _SHARES.items():
        if name == split:
            first, last = (round(NUM_LANDS * x) for x in (start, start + share))
            lands = list(dict.fromkeys(f.land for f in everything))[first:last]
            return [f for f in everything if f.land in lands]
        start += share
    raise AssertionError


def alias_facts() -> list[Fact]:
    """What every alias stands for, as a text question; taught to the backbones, never edited."""
    return [
        Fact(f"nq question: what is the plain word for {alias}", concept, alias)
        for concept, aliases in ALIASES.items()
        for alias in aliases
    ]


def fact_words() -> set[str]:
    """Every whole word of the facts' questions and answers; names of lands are left out."""
    texts = [q.format(land="") for q, _ in _RELATIONS.values()]
    texts += [a for _, answers in _RELATIONS.values() for a in answers]
    return set(" ".join([*texts, "nq question: what is the plain word for"]).split())
