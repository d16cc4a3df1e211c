"""The E-VQA and E-IC file formats: folder layout and row fields, which other benchmarks share.

    FOLDER/vqa/vqa_train.json               split vqa-train
    FOLDER/vqa/vqa_eval.json                      vqa-eval
    FOLDER/caption/caption_train_edit.json        caption-train
    FOLDER/caption/caption_eval_edit.json         caption-eval
    FOLDER/images/...                       the images, unless `image_root` is given

Fields and prompts follow the files of MMEdit (Cheng et al. 2023) as VisEdit and DualEdit read them:

    request            image           `src`       -> `alt`
    text generality    image           `rephrase`  -> `alt`
    visual generality  image_rephrase  `src`       -> `alt`
    text locality      -               `loc` + "?" -> `loc_ans`
    visual locality    m_loc           `m_loc_q`   -> `m_loc_a`

A field of an image may hold a list of names: several images in one prompt, in order. An error
names the one at fault as `image[1]`.

Questions about images get the suffix " The answer is:"; caption prompts do not.
`pred`, the wrong answer of the model that the files were made with, goes to `meta`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrib.errors import RowError, SetupError

Task = Literal["vqa", "captions"]
Row = Mapping[str, Any]
Names = str | Sequence[str]  # of one image, or of several in one prompt

FILES = {
    "vqa-train": "vqa/vqa_train.json",
    "vqa-validation": "vqa/vqa_validation.json",
    "vqa-eval": "vqa/vqa_eval.json",
    "caption-train": "caption/caption_train_edit.json",
    "caption-validation": "caption/caption_validation_edit.json",
    "caption-eval": "caption/caption_eval_edit.json",
}
PROMPTS = ("src", "rephrase", "loc", "m_loc_q")
TARGETS = ("alt", "loc_ans", "m_loc_a")
IMAGES = ("image", "image_rephrase", "m_loc")
ELEVEN = (*PROMPTS, *TARGETS, *IMAGES, "pred")
MAY_BE_EMPTY = ("pred",)  # a model may have answered nothing
MAY_BE_NULL = ("m_loc",)  # a locality question without an image
HARD = "hard"
HARD_FIELDS = ("image", "prompt", "target", "type")
Bad = Callable[[str, str], RowError]


def read_rows(path: Path) -> tuple[list[object], str]:
    """The rows of a JSON file, not validated, and the SHA-256 of its bytes.

    Raises:
        SetupError: if it is missing, not JSON (with line and column), or not a list of rows.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        rows = json.loads(raw)
    except json.JSONDecodeError as error:
        complete = raw.rstrip().endswith(b"]")
        what = "damaged there" if complete else "truncated: it does not end with ']'"
        raise SetupError(
            f"{path}: invalid JSON at line {error.lineno}, column {error.colno} "
            f"(character {error.pos}): {error.msg}; {what}; copy or download it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: invalid JSON ({error}); copy or download it again") from error
    if not isinstance(rows, list):
        keys = f" with the keys {list(rows)[:3]}" if isinstance(rows, dict) else ""
        raise SetupError(f"{path}: holds {kind_of(rows)}{keys}; expected a list of rows")
    return rows, hashlib.sha256(raw).hexdigest()


def validate_row(
    row: object, file: str, index: int, names: Mapping[str, str | None] | None = None
) -> Row:
    """The row itself, once every field is present and usable; lists of images become tuples.

    Args:
        row: what the file holds.
        file: the file to name in an error.
        index: the row's number in it.
        names: the file's names of the eleven fields; None for one that it lacks, which is then
            null (an image) or empty.

    Raises:
        RowError: naming the first field that is missing, not text, empty or not Unicode.
    """

    def bad(field: str, reason: str) -> RowError:
        return RowError(reason, file=file, row=index, field=field)

    if not isinstance(row, dict):
        raise bad("row", f"is {kind_of(row)}, not an object with the eleven fields")
    found: dict[str, Any] = {}
    for name in ELEVEN:
        given = name if names is None else names.get(name, name)
        if given is None:
            found[name] = None if name in IMAGES else ""
            continue
        if given not in row:
            raise bad(given, "is missing")
        if not (row[given] is None and name in MAY_BE_NULL):
            _check(row[given], name, given, bad)
        found[name] = tuple(row[given]) if isinstance(row[given], list) else row[given]
    items = row.get(HARD, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad(HARD, f"is {kind_of(items)}, not a list of objects")
    for i, item in enumerate(items):
        for name in HARD_FIELDS:
            _check(item.get(name), name, f"{HARD}[{i}].{name}", bad)
    return row | found


def clean_row(row: Row) -> Row:
    """The row without the artefacts of how the files were generated.

    A quoted rephrase loses its quotes, of several rephrases the first that differs from `src` is
    kept, and the target loses its outer white space.
    """
    return {**row, "rephrase": _first_paraphrase(row), "alt": row["alt"].strip()}


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


def named(field: str, names: Any) -> list[tuple[str, Any]]:
    """(field, name) of each image of a field: "image[1]" for the second of several."""
    if isinstance(names, list | tuple):
        return [(f"{field}[{i}]", name) for i, name in enumerate(names)]
    return [(field, names)]


def _check(value: object, name: str, place: str, bad: Bad) -> None:
    if name in IMAGES and value == []:
        raise bad(place, "is an empty list; give the name of an image, or several")
    for field, text in named(place, value) if name in IMAGES else [(place, value)]:
        check_text(text, name in MAY_BE_EMPTY, partial(bad, field))


def check_text(value: object, may_be_empty: bool, bad: Callable[[str], RowError]) -> None:
    """Raise the RowError of `bad` unless a value is text, and not empty unless it may be."""
    if not isinstance(value, str):
        raise bad(f"is {kind_of(value)}, not text")
    if not value.strip() and not may_be_empty:
        raise bad("is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can hold lone surrogates, tokenizers cannot
        raise bad(f"holds half a Unicode character at position {error.start}") from error


def kind_of(value: object) -> str:
    """What a value is, in words for messages."""
    names = {dict: "an object", list: "a list", bool: "a boolean", type(None): "null", str: "text"}
    number = isinstance(value, int | float)
    return names.get(type(value), "a number" if number else f"of type {type(value).__name__}")
