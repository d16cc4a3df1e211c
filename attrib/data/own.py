"""A user's own table as edit samples: its columns, the checks of its rows, its images.

A row needs a prompt, and an image and a target where there are such columns. Cells of the other
columns may be empty: the sample then lacks what they hold. Prompts are taken as they stand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from PIL import Image

from attrib.data.benchmarks import Benchmark
from attrib.data.columns import Columns, find_columns, log_columns
from attrib.data.easyedit import ELEVEN, IMAGES, Bad, Row, check_text, kind_of
from attrib.data.images import check_bytes, check_inside, open_bytes, open_inside
from attrib.data.sources import SplitSource, image_root_of
from attrib.data.table_types import BadRow, StoredImage, Table
from attrib.data.tables import read_table
from attrib.errors import AttribError, RowError

FIELDS = {"prompt": "src", "target": "alt"}  # the other fields have the names of E-VQA's
REQUIRED = ("image", "prompt", "target")  # in each row, where there is such a column
logger = getLogger("attrib")


@dataclass(frozen=True)
class OwnTable(Benchmark):
    """The layout of a user's table.

    Attributes:
        columns: field -> column.
        separator: what stands between several images of one cell, if anything.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None

    def named(self, name: str) -> str:
        """The table's name of one of the eleven fields."""
        by_name = {FIELDS.get(field, field): column for field, column in self.columns.items()}
        return by_name.get(name, name)

    def validate(self, row: object, file: str, index: int) -> Row:
        """The eleven fields of a row, those that it lacks empty; `other`: the other columns.

        Raises:
            RowError: A cell is missing, empty or of another type; it names the column.
        """

        def bad(name: str, reason: str) -> RowError:
            return RowError(reason, file=file, row=index, field=name)

        if isinstance(row, BadRow):
            raise bad("row", row.reason)
        if not isinstance(row, dict):
            raise bad("row", f"is {kind_of(row)}, not an object with the columns of the table")
        found: dict[str, Any] = {name: None if name in IMAGES else "" for name in ELEVEN}
        for name, column in self.columns.items():
            if (field := FIELDS.get(name, name)) in ELEVEN:
                found[field] = self._cell(row, name, column, bad)
        for one, other in (("loc", "loc_ans"), ("m_loc_q", "m_loc_a")):
            if bool(found[one]) != bool(found[other]):
                empty, full = (other, one) if found[one] else (one, other)
                raise bad(self.columns[empty], f"is empty, but there is {self.columns[full]}")
        if found["m_loc"] is not None and not found["m_loc_q"]:
            raise bad(self.columns["m_loc_q"], f"is empty, but there is {self.columns['m_loc']}")
        used = set(self.columns.values())
        plain = {k: v for k, v in row.items() if k not in used and _is_plain(v)}
        return {**found, "other": plain} if plain else found

    def _cell(self, row: Mapping[str, Any], name: str, column: str, bad: Bad) -> Any:
        """The text or the images of a cell."""
        value = row.get(column)
        if _is_empty(value):
            if name in REQUIRED:
                raise bad(column, "is empty" if column in row else "is missing")
            return None if name in IMAGES else ""
        if name in IMAGES:
            return _images(value, column, self.separator, bad)
        check_text(value, False, partial(bad, column))
        return value


def own_source(
    path: Path,
    split: str | None,
    image_root: str | Path | None,
    columns: str | Mapping[str, str] | None,
    max_pixels: int,
) -> SplitSource:
    """The rows of a user's table, or those of one split of it.

    Raises:
        AttribError: The columns, the split or the image root do not fit.
        SetupError: A file is missing or cannot be read.
    """
    table, split = read_table(path, split)
    file = str(table.path)
    if not table.rows:
        raise AttribError(f"{file}: holds no rows")
    found = find_columns(table.columns, columns, file)
    log_columns(file, found)
    numbers = rows_of_split(table, found, split)
    ids, changed = ids_of(table, found, numbers)
    if changed:
        text = "%s: %d rows repeat an id and have their number appended, such as %s"
        logger.info(text, file, len(changed), changed[0])
    root = image_root_of(table.folder, image_root)
    return SplitSource(
        file=file,
        ids=path.stem,
        rows=[table.rows[number] for number in numbers],
        digest=table.digest,
        benchmark=layout_of(table, found),
        open_image=partial(_open_image, table, root, max_pixels),
        check_image=partial(_check_image, table, root, max_pixels),
        other_splits=partial(_no_other_splits, path),
        labels=list(zip(numbers, ids, strict=True)),
        columns=found,
        repeated_ids=len(changed),
    )


def layout_of(table: Table, columns: Columns) -> OwnTable:
    """The layout of a table with the given columns."""
    return OwnTable("table", {}, columns=columns.by_field, separator=table.separator)


def rows_of_split(table: Table, columns: Columns, split: str | None) -> list[int]:
    """The numbers of the rows of a split, by the column `split`; without one, of all rows.

    Raises:
        AttribError: There is no such column, or no row of the split.
    """
    if split is None:
        return list(range(len(table.rows)))
    column = columns.by_field.get("split")
    if column is None:
        raise AttribError(
            f"{table.path} is one table without a column named split: leave the split "
            f"{split!r} out, or name the column that has it, as columns: split=COLUMN"
        )
    parts = [row.get(column) if isinstance(row, dict) else None for row in table.rows]
    known = [None if _is_empty(part) else str(part) for part in parts]  # 1 is the split "1"
    numbers = [number for number, part in enumerate(known) if part == split]
    if not numbers:
        there = ", ".join(dict.fromkeys(part for part in known if part is not None))
        raise AttribError(f"{table.path}: no row has {column} = {split!r}; there are {there}")
    return numbers


def has_split(path: Path, split: str, columns: str | None) -> bool:
    """Whether a table has rows of a split, or a folder of saved datasets has that split."""
    try:
        table, left = read_table(path, split)
        found = find_columns(table.columns, columns, str(table.path))
        return bool(rows_of_split(table, found, left))
    except AttribError:
        return False


def ids_of(table: Table, columns: Columns, numbers: Sequence[int]) -> tuple[list[str], list[str]]:
    """Unique ids of samples: the table's; and those of rows that repeat one, which are changed."""
    column, stem = columns.by_field.get("id"), table.path.stem
    ids: dict[str, None] = {}
    changed = []
    for number in numbers:
        row = table.rows[number]
        given = row.get(column) if column is not None and isinstance(row, dict) else None
        name = f"{stem}/{number}" if _is_empty(given) else str(given)
        if name in ids:
            while name in ids:
                name = f"{name}#{number}"
            changed.append(name)
        ids[name] = None
    return list(ids), changed


def _open_image(table: Table, root: Path, max_pixels: int, image: str | StoredImage) -> Image.Image:
    if isinstance(image, str):
        return open_inside(root, image, max_pixels=max_pixels)
    return open_bytes(table.read_image(image), str(image), max_pixels=max_pixels)


def _check_image(table: Table, root: Path, max_pixels: int, image: str | StoredImage) -> None:
    if isinstance(image, str):
        check_inside(root, image, max_pixels=max_pixels)
    else:
        check_bytes(table.read_image(image), str(image), max_pixels=max_pixels)


def _no_other_splits(path: Path) -> list[Sequence[object]]:
    raise AttribError(f"{path}: disjoint compares the splits of a benchmark; leave it out")


def _images(value: Any, column: str, separator: str | None, bad: Bad) -> Any:
    """An image, or a tuple of several."""
    if isinstance(value, str) and separator is not None and separator in value:
        value = [piece.strip() for piece in value.split(separator) if piece.strip()]
    if isinstance(value, list):
        found = tuple(_image(one, f"{column}[{i}]", bad) for i, one in enumerate(value))
        if not found:
            raise bad(column, "names no image")
        return found
    return _image(value, column, bad)


def _image(value: Any, place: str, bad: Bad) -> str | StoredImage:
    """The path of an image, or the handle of one that the table holds."""
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if isinstance(value, StoredImage):
        return value
    if not isinstance(value, str):
        raise bad(place, f"is {kind_of(value)}, not the path of an image")
    check_text(value, False, partial(bad, place))
    return value.strip()


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, blanks, or an empty list."""
    if isinstance(value, float):
        return value != value
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and not _is_empty(value)
