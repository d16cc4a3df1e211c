"""One row of an E-VQA or E-IC file, and the sample that it stands for.

The eleven fields, the prompts and where each goes follow the files of MMEdit (Cheng et al. 2023)
as VisEdit and DualEdit read them:

    request            image           `src`       -> `alt`
    text generality    image           `rephrase`  -> `alt`
    visual generality  image_rephrase  `src`       -> `alt`
    text locality      -               `loc` + "?" -> `loc_ans`
    visual locality    m_loc           `m_loc_q`   -> `m_loc_a`

Questions about images get the suffix " The answer is:"; caption prompts do not.
`pred`, the wrong answer of the model the files were made with, goes to `meta`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from PIL import Image

from attrib.data.images import BadImage
from attrib.data.samples import EditRequest, EditSample
from attrib.errors import RowError

Task = Literal["vqa", "captions"]
Row = Mapping[str, Any]

PROMPTS = ("src", "rephrase", "loc", "m_loc_q")
TARGETS = ("alt", "loc_ans", "m_loc_a")
IMAGES = ("image", "image_rephrase", "m_loc")
FIELDS = (*PROMPTS, *TARGETS, *IMAGES, "pred")
MAY_BE_EMPTY = ("pred",)  # A model may well have answered nothing.
MAY_BE_NULL = ("m_loc",)  # A locality question that needs no picture.
HARD = "hard"
HARD_FIELDS = ("image", "prompt", "target", "type")
SUFFIX = " The answer is:"


def well_formed(row: object, file: str, index: int) -> Row:
    """The row itself, once every field is there and can be used.

    Raises:
        RowError: naming the first field that is missing, not text, empty or not Unicode.
    """

    def bad(field: str, reason: str) -> RowError:
        return RowError(reason, file=file, row=index, field=field)

    if not isinstance(row, dict):
        raise bad("row", f"is {_kind(row)}, not an object with the eleven fields")
    for name in FIELDS:
        if name not in row:
            raise bad(name, "is missing")
        if not (row[name] is None and name in MAY_BE_NULL):
            _check_text(row[name], name in MAY_BE_EMPTY, partial(bad, name))
    items = row.get(HARD, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad(HARD, f"is {_kind(items)}, not a list of objects")
    for i, item in enumerate(items):
        for name in HARD_FIELDS:
            _check_text(item.get(name), False, partial(bad, f"{HARD}[{i}].{name}"))
    return row


def to_sample(
    row: Row, id: str, *, task: Task, file: str, index: int, opener: Callable[[str], Image.Image]
) -> EditSample:
    """The sample a well-formed row stands for; its images are opened when touched.

    Args:
        row: what `well_formed` returned.
        id: name of the sample.
        task: decides the prompts of the request.
        file: the file to name when an image turns out bad.
        index: the row's number in it.
        opener: returns the RGB image of a name.
    """

    def picture(name: str, field: str) -> partial[Image.Image]:
        return partial(_touch, opener, name, file, index, field)

    image, alt = picture(row["image"], "image"), row["alt"]
    ask = _asked if task == "vqa" else str
    m_loc = None if row["m_loc"] is None else picture(row["m_loc"], "m_loc")
    hard = row.get(HARD, [])
    extras = {name: value for name, value in row.items() if name not in (*FIELDS, HARD)}
    return EditSample(
        id=id,
        request=EditRequest(image, ask(row["src"]), alt),
        text_generality=[EditRequest(image, ask(row["rephrase"]), alt)],
        visual_generality=[
            EditRequest(picture(row["image_rephrase"], "image_rephrase"), ask(row["src"]), alt)
        ],
        text_locality=[EditRequest(None, f"{row['loc']}?", row["loc_ans"])],
        visual_locality=[EditRequest(m_loc, _asked(row["m_loc_q"]), row["m_loc_a"])],
        hard_locality=[
            EditRequest(
                picture(item["image"], f"{HARD}[{i}].image"), ask(item["prompt"]), item["target"]
            )
            for i, item in enumerate(hard)
        ],
        meta={
            "task": task,
            "row": index,
            "pred": row["pred"],
            "hard_types": [item["type"] for item in hard],
            **extras,
        },
    )


def cleaned(row: Row) -> Row:
    """The row without the quirks of its making.

    A rephrase that is quoted loses its quotes; one that holds several loses all but the first
    that differs from `src`; a target loses its outer whitespace.
    """
    return {**row, "rephrase": _first_paraphrase(row), "alt": row["alt"].strip()}


def image_names(row: Row, fields: Iterable[str] = (*IMAGES, HARD)) -> list[tuple[str, str]]:
    """(field, name) of every picture the row asks for in `fields`."""
    fields = tuple(fields)
    plain = [(field, row[field]) for field in IMAGES if field in fields and row[field] is not None]
    hard = enumerate(row.get(HARD, []) if HARD in fields else [])
    return plain + [(f"{HARD}[{i}].image", item["image"]) for i, item in hard]


def _touch(
    opener: Callable[[str], Image.Image], name: str, file: str, index: int, field: str
) -> Image.Image:
    try:
        return opener(name)
    except BadImage as error:
        raise RowError(str(error), file=file, row=index, field=field) from error


def _asked(question: str) -> str:
    return question if question.endswith(SUFFIX) else question + SUFFIX


def _first_paraphrase(row: Row) -> str:
    pieces = re.split(r"(?i)\n|can be rewritten as|rewritten (?:as|question):", row["rephrase"])
    candidates = [piece for piece in map(_unquoted, pieces) if piece]
    src = row["src"].strip().lower()
    others = [piece for piece in candidates if piece.lower() != src]
    return [*others, *candidates, row["rephrase"]][0]


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = text.startswith('"') and text.endswith('"') and text.count('"') == 2
    return text[1:-1].strip() if quoted else text


def _check_text(value: object, may_be_empty: bool, bad: Callable[[str], RowError]) -> None:
    if not isinstance(value, str):
        raise bad(f"is {_kind(value)}, not text")
    if not value.strip() and not may_be_empty:
        raise bad("is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell it; no tokenizer and no file takes it.
        raise bad(f"holds half a Unicode character at position {error.start}") from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "text" if isinstance(value, str) else "a number")
