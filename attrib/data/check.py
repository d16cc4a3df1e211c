"""A report on a folder of E-VQA / E-IC files: what is in them, what is doubtful, what overlaps.

Counts are over well-formed rows. A word is what single blanks separate, outer white space aside.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrib.data.doubts import DOUBTS, is_yes_no
from attrib.data.images import MAX_PIXELS, BadImage, check_inside, open_inside
from attrib.data.rows import Row, image_names, well_formed
from attrib.data.samples import Quarantined
from attrib.data.tables import FILES, read_rows, splits_in
from attrib.errors import AttribError, RowError, SetupError
from attrib.progress import progress

TOP_ANSWERS = 5
COUNTED = ("src", "rephrase", "alt", "loc", "loc_ans", "m_loc_q", "m_loc_a")
COMPARED = (("train", "eval"), ("train", "validation"), ("validation", "eval"))
COPIED = ("loc", "(m_loc, m_loc_q)")

KEYS: dict[str, Callable[[Row], object]] = {
    "src": lambda r: r["src"],
    "rephrase": lambda r: r["rephrase"],
    "alt": lambda r: r["alt"],
    "image": lambda r: r["image"],
    "image_rephrase": lambda r: r["image_rephrase"],
    "loc": lambda r: r["loc"],
    "(image, src)": lambda r: (r["image"], r["src"]),
    "(src, alt)": lambda r: (r["src"], r["alt"]),
    "(m_loc, m_loc_q)": lambda r: (r["m_loc"], r["m_loc_q"]),
    "(m_loc, m_loc_q, m_loc_a)": lambda r: (r["m_loc"], r["m_loc_q"], r["m_loc_a"]),
}


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; every part is made of what JSON can hold.

    Attributes:
        folder: what was checked.
        files: per split: rows, malformed rows, unique values, words, answers, doubts, repeats.
        unreadable: per split whose file is no list of rows: the reason.
        absent: splits whose file is not there.
        totals: distinct pictures over all files.
        overlaps: per "eval in train" pair: how many rows share what.
        copies: columns that one file shares with the start of another.
        images: pictures needed, missing and broken; None if no image root was given.
    """

    folder: str
    files: Mapping[str, dict[str, Any]]
    unreadable: Mapping[str, str]
    absent: Sequence[str]
    totals: Mapping[str, int]
    overlaps: Mapping[str, dict[str, int]]
    copies: Sequence[str]
    images: Mapping[str, Any] | None

    @property
    def sound(self) -> bool:
        """Whether every file, row and picture that was looked at can be used."""
        rows = any(file["malformed"] for file in self.files.values())
        images = self.images and (self.images["missing"] or self.images["broken"])
        return not (self.unreadable or rows or images)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)


def check(
    folder: str | Path,
    image_root: str | Path | None = None,
    *,
    pixels: Literal["decode", "header"] = "decode",
    max_pixels: int = MAX_PIXELS,
) -> CheckReport:
    """What is in the files of a folder in the E-VQA / E-IC layout.

    Args:
        folder: holds vqa/vqa_train.json and its siblings, or some of them.
        image_root: where the pictures are; without it none is looked for.
        pixels: "decode" finds every broken picture, "header" is faster and misses those that
            are cut off.
        max_pixels: larger pictures count as broken.

    Raises:
        AttribError: if the folder or the image root is none.
        SetupError: if it holds none of the files.
    """
    for path in (folder, image_root):
        if path is not None and not Path(path).is_dir():
            raise AttribError(f"{path}: no such folder")
    there = splits_in(Path(folder))
    if not there:
        raise SetupError(f"{folder}: holds none of {', '.join(FILES.values())}")
    rows, malformed, unreadable = {}, {}, {}
    for split in there:
        try:
            rows[split], malformed[split] = _sorted_out(Path(folder) / FILES[split])
        except SetupError as error:
            unreadable[split] = str(error)
    use = check_inside if pixels == "header" else open_inside
    return CheckReport(
        folder=str(folder),
        files={split: _facts(rows[split], malformed[split]) for split in rows},
        unreadable=unreadable,
        absent=[split for split in FILES if split not in there],
        totals=_totals(rows.values()),
        overlaps={
            f"{task}-{b} in {task}-{a}": overlap(rows[f"{task}-{a}"], rows[f"{task}-{b}"])
            for task in ("vqa", "caption")
            for a, b in COMPARED
            if f"{task}-{a}" in rows and f"{task}-{b}" in rows
        },
        copies=_copies(rows),
        images=None
        if image_root is None
        else _images(rows.values(), partial(use, image_root, max_pixels=max_pixels)),
    )


def overlap(train: Sequence[Row], other: Sequence[Row]) -> dict[str, int]:
    """How many rows of `other` share what with any row of `train`."""
    shared = {"rows": len(other)}
    for name, key in KEYS.items():
        seen = {key(row) for row in train}
        shared[name] = sum(key(row) in seen for row in other)
    item = KEYS["(m_loc, m_loc_q, m_loc_a)"]
    pairs = zip(train, other, strict=False)
    shared["(m_loc, m_loc_q, m_loc_a) in the same row"] = sum(item(a) == item(b) for a, b in pairs)
    images, places = ({row[field] for row in train} for field in ("image", "m_loc"))
    shared["image, unique"] = len(images & {row["image"] for row in other})
    shared["image as m_loc"] = sum(row["image"] in places for row in other)
    shared["m_loc as image"] = sum(row["m_loc"] in images for row in other)
    return shared


def _sorted_out(path: Path) -> tuple[list[Row], list[Quarantined]]:
    good, bad = [], []
    for index, row in enumerate(read_rows(path)[0]):
        try:
            good.append(well_formed(row, str(path), index))
        except RowError as error:
            bad.append(Quarantined.from_error(error))
    return good, bad


def _facts(rows: Sequence[Row], malformed: Sequence[Quarantined]) -> dict[str, Any]:
    return {
        "rows": len(rows) + len(malformed),
        "malformed": [asdict(row) for row in malformed],
        "unique": {name: len({key(row) for row in rows}) for name, key in KEYS.items()}
        | {"real images": len(_real_images(rows))},
        "words": {name: _words(row[name] for row in rows) for name in COUNTED},
        "answers": {
            "yes/no": sum(map(is_yes_no, rows)),
            "digits": sum(row["alt"].strip().isdigit() for row in rows),
            "top": Counter(row["alt"] for row in rows).most_common(TOP_ANSWERS),
        },
        "doubts": {name: sum(map(doubt, rows)) for name, doubt in DOUBTS.items()},
        "repeats": _repeats(rows),
    }


def _repeats(rows: Sequence[Row]) -> dict[str, int | None]:
    groups: dict[object, list[str]] = {}
    for row in rows:
        groups.setdefault(KEYS["(image, src)"](row), []).append(row["alt"])
    several = [answers for answers in groups.values() if len(answers) > 1]
    places = [KEYS["(m_loc, m_loc_q)"](row) for row in rows]
    answered = {KEYS["(m_loc, m_loc_q, m_loc_a)"](row) for row in rows}
    return {
        "whole rows": len(rows) - len({json.dumps(row, sort_keys=True) for row in rows}),
        "(image, src) groups": len(several),
        "(image, src) groups with different alt": sum(len(set(a)) > 1 for a in several),
        "(m_loc, m_loc_q) again": len(rows) - len(set(places)),
        "(m_loc, m_loc_q) again with the same m_loc_a": len(rows) - len(answered),
        "(m_loc, m_loc_q) starts over after": _period(places),
    }


def _period(values: Sequence[object]) -> int | None:
    """After how many values a list starts over and goes on the same; None if it does not."""
    starts = (i for i in range(1, len(values)) if values[i] == values[0])
    return next((i for i in starts if values[i:] == values[: len(values) - i]), None)


def _words(texts: Iterable[str]) -> dict[str, float]:
    counts = [len(text.strip().split(" ")) for text in texts] or [0]
    return {"mean": sum(counts) / len(counts), "min": min(counts), "max": max(counts)}


def _real_images(rows: Iterable[Row]) -> set[str]:
    return {name for row in rows for _, name in image_names(row, ("image", "m_loc"))}


def _totals(tables: Iterable[Sequence[Row]]) -> dict[str, int]:
    rows = [row for table in tables for row in table]
    return {
        "rows": len(rows),
        "real images": len(_real_images(rows)),
        "image_rephrase": len({row["image_rephrase"] for row in rows}),
    }


def _copies(tables: Mapping[str, Sequence[Row]]) -> list[str]:
    found = []
    for short, long in ((s, t) for s in tables for t in tables if s != t):
        n = len(tables[short])
        for column in COPIED if n and n < len(tables[long]) else ():
            if list(map(KEYS[column], tables[short])) == list(map(KEYS[column], tables[long][:n])):
                found.append(f"{column} of {short} is that of the first {n} rows of {long}")
    return found


def _images(tables: Iterable[Sequence[Row]], use: Callable[[str], object]) -> dict[str, Any]:
    names = sorted({name for table in tables for row in table for _, name in image_names(row)})
    missing, broken = [], {}
    for name in progress(names, "pictures"):
        try:
            use(name)
        except BadImage as error:
            if error.reason.startswith("no such file"):
                missing.append(name)
            else:
                broken[name] = error.reason
    return {"needed": len(names), "missing": missing, "broken": broken}
