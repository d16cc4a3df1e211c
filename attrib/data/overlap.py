"""Repeats within a split, and what the splits of a task share: rows, images, locality items."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from attrib.data.easyedit import Row
from attrib.data.samples import EditSample

PAIRS = (("train", "eval"), ("train", "validation"), ("validation", "eval"))
EDIT, LOCALITY, ANSWERED = "(image, src)", "(m_loc, m_loc_q)", "(m_loc, m_loc_q, m_loc_a)"
# Fields, alone and together, whose values are counted and compared.
KEYS = (
    *("src", "rephrase", "alt", "image", "image_rephrase", "loc"),
    *(EDIT, "(src, alt)", LOCALITY, ANSWERED),
)


def values_of(rows: Sequence[Row], key: str) -> list[tuple[Any, ...]]:
    """The values of a key such as "(src, alt)", row by row."""
    fields = re.findall(r"\w+", key)
    return [tuple(row[field] for field in fields) for row in rows]


def each_value(rows: Sequence[Row], key: str) -> list[set[tuple[Any, ...]]]:
    """The values of a key row by row; of several images in a field, a value with each."""
    return [
        set(product(*(one if isinstance(one, tuple) else (one,) for one in values)))
        for values in values_of(rows, key)
    ]


def same_image(row: Row) -> bool:
    """Whether an image of the edit is one of visual locality too."""
    images, places = (each_value([row], field)[0] for field in ("image", "m_loc"))
    return not images.isdisjoint(places)


def repeats(rows: Sequence[Row]) -> dict[str, int | None]:
    """How often rows, edits and locality items occur again within a split."""
    edits = Counter(values_of(rows, EDIT))
    answers = Counter((image, src) for image, src, _ in set(values_of(rows, "image, src, alt")))
    items = values_of(rows, LOCALITY)
    restarts = (i for i in range(1, len(items)) if items[i] == items[0])
    return {
        "whole rows": len(rows) - len({json.dumps(row, sort_keys=True) for row in rows}),
        f"{EDIT} groups": sum(n > 1 for n in edits.values()),
        f"{EDIT} groups with different alt": sum(n > 1 for n in answers.values()),
        "loc repeated": len(rows) - len(set(values_of(rows, "loc"))),
        "(loc, loc_ans) repeated": len(rows) - len(set(values_of(rows, "loc, loc_ans"))),
        f"{LOCALITY} repeated": len(rows) - len(set(items)),
        f"{LOCALITY} repeated with the same m_loc_a": len(rows)
        - len(set(values_of(rows, ANSWERED))),
        f"{LOCALITY} period": next(
            (i for i in restarts if items[i:] == items[: len(items) - i]), None
        ),
    }


def overlap(train: Sequence[Row], other: Sequence[Row]) -> dict[str, int]:
    """How many rows of `other` share which values with any row of `train`.

    Rows with several images share them if they share one.
    """
    shared = {"rows": len(other)}
    for key in KEYS:
        seen = set().union(*each_value(train, key))
        shared[key] = sum(not seen.isdisjoint(values) for values in each_value(other, key))
    pairs = zip(values_of(train, ANSWERED), values_of(other, ANSWERED), strict=False)
    shared[f"{ANSWERED} in the same row"] = sum(a == b for a, b in pairs)
    images, places = (set().union(*each_value(train, field)) for field in ("image", "m_loc"))
    own, own_places = (each_value(other, field) for field in ("image", "m_loc"))
    shared["image, unique"] = len(images & set().union(*own))
    shared["image as m_loc"] = sum(not places.isdisjoint(values) for values in own)
    shared["m_loc as image"] = sum(not images.isdisjoint(values) for values in own_places)
    return shared


def overlaps(tables: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, int]]:
    """Overlaps of the splits of each task, under names such as "vqa-eval in vqa-train"."""
    pairs = [(f"{task}-{a}", f"{task}-{b}") for task in ("vqa", "caption") for a, b in PAIRS]
    there = [(a, b) for a, b in pairs if a in tables and b in tables]
    return {f"{b} in {a}": overlap(tables[a], tables[b]) for a, b in there}


def copied_columns(tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """Locality columns of one split that repeat the start of another split's, as sentences."""
    found = []
    for short, long in ((s, t) for s in tables for t in tables if s != t):
        n = len(tables[short])
        for key in ("loc", LOCALITY) if n and n < len(tables[long]) else ():
            if values_of(tables[short], key) == values_of(tables[long][:n], key):
                found.append(f"{key} of {short} equals that of the first {n} rows of {long}")
    return found


def without_shared_locality(
    samples: Sequence[EditSample], rows: Sequence[object], others: Sequence[Sequence[object]]
) -> list[EditSample]:
    """The samples without the visual-locality items that another split has too.

    Args:
        samples: of one split.
        rows: the rows of that split, by the `row` of the samples' meta; not validated.
        others: the rows of the other splits; not validated.
    """
    elsewhere = {_locality(row) for other in others for row in other}
    return [
        replace(sample, visual_locality=[])
        if _locality(rows[sample.meta["row"]]) in elsewhere
        else sample
        for sample in samples
    ]


def _locality(row: object) -> tuple[str, str]:
    row = row if isinstance(row, dict) else {}
    return str(row.get("m_loc")), str(row.get("m_loc_q"))
