"""Tables in text files: CSV and TSV, one JSON object per line, or a JSON list of objects.

A cell of CSV is text as it stands: "NA", "null" and "3" stay what they are. The separator of a CSV
is the one of comma, semicolon and tab that its header has most of. Files are UTF-8, with or without
a byte-order mark, or UTF-16 with one.
"""

import csv
import io
import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from attrib.data.easyedit import read_rows
from attrib.data.table_types import BadRow, Table
from attrib.errors import SetupError

DELIMITERS = (",", ";", "\t")  # of a CSV; the first of equally frequent ones
BETWEEN_IMAGES = ";"  # in one cell
LONGEST_CELL = 1 << 24  # characters; longer ones come from a quote that is not closed


def read_delimited(path: Path) -> Table:
    """The rows of a CSV or TSV file; those whose number of cells is wrong are `BadRow`s.

    Raises:
        SetupError: The file cannot be read, is empty, or has no usable header.
    """
    text, digest = _read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else delimiter_of(text)
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        records = [(lines.line_num, cells) for cells in lines if any(map(str.strip, cells))]
    except csv.Error as error:
        raise SetupError(
            f"{path}: line {lines.line_num}: {error}; is a quote not closed, or one inside a "
            'quoted cell not doubled ("")?'
        ) from error
    if not records:
        raise SetupError(f"{path}: the file has no header: its first line names the columns")
    (_, header), *rows = records
    names = _names(header, path)
    read = [_row(names, cells, line, delimiter) for line, cells in rows]
    return Table(path, tuple(filter(None, names)), read, digest, BETWEEN_IMAGES)


def read_json_lines(path: Path) -> Table:
    """The rows of a file with a JSON object per line; a line that is no JSON is a `BadRow`.

    Raises:
        SetupError: The file cannot be read, is empty, or no line of it is JSON.
    """
    text, digest = _read_text(path)
    rows = list(_parsed(text))
    bad = [row for row in rows if isinstance(row, BadRow)]
    if len(bad) == len(rows):
        raise SetupError(f"{path}: no line is JSON ({bad[0].reason}); expected one object a line")
    return Table(path, keys_of(rows), rows, digest)


def read_json(path: Path) -> Table:
    """The rows of a JSON file that holds a list of objects.

    Raises:
        SetupError: The file is missing, empty, no JSON, or not a list.
    """
    if path.stat().st_size == 0:
        raise SetupError(f"{path}: the file is empty")
    rows, digest = read_rows(path)
    return Table(path, keys_of(rows), rows, digest)


def delimiter_of(text: str) -> str:
    """The separator of a CSV, judged by its first line; those inside quotes do not count."""
    first = next(line for line in text.splitlines() if line.strip())
    unquoted = "".join(first.split('"')[::2])
    return max(DELIMITERS, key=unquoted.count)


def keys_of(rows: Sequence[object]) -> tuple[str, ...]:
    """The keys of all rows that are objects, in the order in which they appear."""
    return tuple(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def _read_text(path: Path) -> tuple[str, str]:
    """The text of a file and the SHA-256 of its bytes."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    wide = raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SetupError(
            f"{path}: line {line}: the byte {raw[error.start]:#04x} is not {error.encoding.upper()}"
            "; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise SetupError(f"{path}: the file is empty")
    return text, sha256(raw).hexdigest()


def _names(header: Sequence[str], path: Path) -> list[str]:
    """The names of the columns; "" for one without a name, which is not read."""
    names = [name.strip() for name in header]
    twice = [name for name, n in Counter(filter(None, names)).items() if n > 1]
    if twice:
        raise SetupError(f"{path}: two columns are named {twice[0]!r}; rename one of them")
    return names


def _row(names: Sequence[str], cells: Sequence[str], line: int, delimiter: str) -> object:
    if len(cells) != len(names):
        return BadRow(
            f"line {line} has {len(cells)} cells, the header {len(names)}; a cell with "
            f"{delimiter!r} in it needs quotes"
        )
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _parsed(text: str) -> Iterator[object]:
    for number, line in enumerate(text.split("\n"), 1):  # a string may hold other line breaks
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadRow(f"line {number} is no JSON: {error}")
