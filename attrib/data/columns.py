"""Which columns of a user's table hold what: guessed by their names, or given.

| field | other names that are recognised |
|---|---|
| `image` | images, file, file_name, filename, path, image_path, image_file, img, picture, photo |
| `prompt` | question, text, instruction, src, query |
| `target` | answer, label, alt |
| `pred` | prediction |
| `rephrase` | paraphrase, rephrased |
| `image_rephrase` | rephrase_image |
| `loc`, `loc_ans` | locality_prompt, locality_ground_truth |
| `m_loc` | multimodal_locality_image |
| `m_loc_q`, `m_loc_a` | multimodal_locality_prompt, multimodal_locality_ground_truth |
| `id` | |
| `split` | |

Upper and lower case, blanks and hyphens make no difference.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger

from attrib.errors import AttribError

ALIASES: dict[str, tuple[str, ...]] = {
    "image": (
        *("images", "file", "file_name", "filename", "path", "image_path", "image_file", "img"),
        *("picture", "photo"),
    ),
    "prompt": ("question", "text", "instruction", "src", "query"),
    "target": ("answer", "label", "alt"),
    "pred": ("prediction",),
    "rephrase": ("paraphrase", "rephrased"),
    "image_rephrase": ("rephrase_image",),
    "loc": ("locality_prompt",),
    "loc_ans": ("locality_ground_truth",),
    "m_loc": ("multimodal_locality_image",),
    "m_loc_q": ("multimodal_locality_prompt",),
    "m_loc_a": ("multimodal_locality_ground_truth",),
    "id": (),
    "split": (),
}
# A field that means nothing without another one.
NEEDS = {"loc": "loc_ans", "loc_ans": "loc", "m_loc": "m_loc_q", "m_loc_q": "m_loc_a",
         "m_loc_a": "m_loc_q"}  # fmt: skip
logger = getLogger("attrib")


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they hold.

    Attributes:
        by_field: field -> column.
        unused: the other columns.
    """

    by_field: Mapping[str, str]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        used = ", ".join(f"{field} = {column}" for field, column in self.by_field.items())
        return f"{used}; not used: {', '.join(self.unused)}" if self.unused else used


def parse_columns(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """Columns as an option names them, such as "image=file,prompt=question".

    Raises:
        AttribError: It has another form, there is no such field, a field is named twice, or a
            column is given for two fields.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = dict(given)
    else:
        parts = [part for part in given.split(",") if part.strip()]
        if wrong := [part for part in parts if "=" not in part]:
            raise AttribError(
                f"expected FIELD=COLUMN such as image=file,prompt=question, got {wrong[0]!r}; a "
                "column with a comma in its name cannot be given: rename it"
            )
        named = [(f.strip(), c.strip()) for f, _, c in (part.partition("=") for part in parts)]
        if twice := _repeated([field for field, _ in named]):
            raise AttribError(f"columns: the field {twice} is given twice; give it one column")
        pairs = dict(named)
    if unknown := [field for field in pairs if field not in ALIASES]:
        raise AttribError(f"a table has no field {unknown[0]!r}; fields are {', '.join(ALIASES)}")
    if twice := _repeated([column for column in pairs.values() if column]):
        fields = " and ".join(field for field, column in pairs.items() if column == twice)
        raise AttribError(f"columns: {twice} is given for {fields}; a column holds one field")
    return pairs


def columns_text(given: str | Mapping[str, str] | None) -> str | None:
    """Columns in the one spelling of the option; None without any.

    Raises:
        AttribError: As `parse_columns`, or a name has a comma, which separates columns.
    """
    pairs = parse_columns(given)
    if comma := [column for column in pairs.values() if "," in column]:
        raise AttribError(f"the column {comma[0]!r} has a comma, which separates: rename it")
    return ",".join(f"{field}={column}" for field, column in pairs.items()) or None


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def find_columns(names: Sequence[str], given: str | Mapping[str, str] | None, file: str) -> Columns:
    """The column of each field: the given one, else the one whose name is recognised.

    Args:
        names: the table's columns.
        given: field -> column; "" for a field that no column holds.
        file: how messages name the table.

    Raises:
        AttribError: A given column does not exist, several columns could hold a field, or none
            holds the prompt.
    """
    asked = parse_columns(given)
    there = f"{file} has the columns {', '.join(names) or 'none'}"
    for field, column in asked.items():
        if column and column not in names:
            raise AttribError(f"columns: {field}={column}: no such column; {there}")
    taken = set(asked.values())
    found = {}
    for field, others in ALIASES.items():
        fitting = [name for name in names if _plain(name) in (field, *others)]
        if field in asked:
            fitting = [asked[field]] if asked[field] else []
        else:
            fitting = [name for name in fitting if name not in taken]
        if len(fitting) > 1:
            several = " and ".join(map(repr, fitting))
            raise AttribError(
                f"{file}: {several} could each hold the {field}; say which, as columns: "
                f"{field}={fitting[0]}"
            )
        if fitting:
            found[field] = fitting[0]
    if "prompt" not in found:
        raise AttribError(
            f"{there}: none is known to hold the prompt; say which, as columns: prompt=COLUMN"
        )
    found = _complete(found, asked, there)
    return Columns(found, tuple(name for name in names if name not in found.values()))


def log_columns(file: str, columns: Columns) -> None:
    """Say in one line which column holds what."""
    logger.info("%s: %s", file, columns)


def _complete(found: Mapping[str, str], asked: Mapping[str, str], there: str) -> dict[str, str]:
    """The fields whose partner is there as well: a column named `loc` alone is something else.

    Raises:
        AttribError: A column was given for a field without its partner.
    """
    kept = dict(found)
    while lonely := [field for field in kept if NEEDS.get(field, field) not in kept]:
        for field in lonely:
            if asked.get(field):
                raise AttribError(
                    f"columns: {field} needs {NEEDS[field]} as well, which no column holds; {there}"
                )
            del kept[field]
    return kept


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip()).lower()
