"""Tables in Parquet files and in the folders that `save_to_disk` of Hugging Face datasets writes.

Bytes of images stay in the files: rows have handles, and opening an image reads the part of its
column that it lies in; the last parts are kept. Arrow files are mapped into memory. An image is
bytes, or a struct with `bytes` and `path`; a cell may be a list of them.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256 as new_digest
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.data.images import BadImage
from attrib.data.table_types import StoredImage, Table
from attrib.errors import SetupError
from attrib.files import read_json, sha256

if TYPE_CHECKING:
    import pyarrow as pa

STATE = "state.json"  # of a saved dataset: names its files
BYTES, PATH = "bytes", "path"  # fields of an image's struct
KEPT = 3  # parts of columns: of the image, of its rephrase, and of one for locality


@dataclass(frozen=True)
class Part:
    """Neighbouring rows in one file: a row group of Parquet, or an Arrow file.

    Attributes:
        file: the file.
        group: number of the row group; None for an Arrow file.
        rows: number of rows.
        changed: time of the file's last change in nanoseconds; another one is another content.
    """

    file: str
    group: int | None
    rows: int
    changed: int


@dataclass(frozen=True)
class StoredImages:
    """Reads the bytes of images from the parts of a table.

    Attributes:
        parts: all parts, in order.
        ends: number of the first row behind each part.
    """

    parts: tuple[Part, ...]
    ends: tuple[int, ...]

    def __call__(self, image: StoredImage) -> bytes:
        """The bytes of an image; raises BadImage if the file cannot be read any more."""
        import pyarrow as pa

        number = bisect_right(self.ends, image.row)
        part = self.parts[number]
        try:
            cell = _column(part, image.column)[image.row - self.ends[number] + part.rows]
            held = cell if image.at is None else cell[image.at]
            return (held[BYTES] if pa.types.is_struct(held.type) else held).as_py()
        except (OSError, pa.ArrowException, LookupError) as error:
            raise BadImage(str(image), f"cannot be read from {part.file}: {error}") from error


def read_parquet(path: Path) -> Table:
    """The rows of a Parquet file.

    Raises:
        SetupError: It cannot be read.
    """
    return _table(path, [path])


def read_saved_dataset(folder: Path) -> Table:
    """The rows of a dataset in a folder that `save_to_disk` wrote.

    Raises:
        SetupError: A file is missing or cannot be read.
    """
    state = read_json(folder / STATE)
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise SetupError(f"{folder / STATE}: does not name the files of the dataset") from error
    files = [folder / Path(name).name for name in names]  # never outside the folder
    if not files:
        raise SetupError(f"{folder / STATE}: names no file; the dataset is empty")
    return _table(folder, files)


def read_shards(folder: Path, files: Sequence[Path]) -> Table:
    """The rows of some Parquet files of a folder, one after the other.

    Raises:
        SetupError: A file cannot be read.
    """
    return _table(folder, files)


def _table(path: Path, files: Sequence[Path]) -> Table:
    import pyarrow as pa

    parts, rows, names = [], [], ()
    for file in files:
        try:
            for part, content in _parts(file):
                names = _names(content, file)
                rows += _rows(content, len(rows))
                parts.append(part)
        except (OSError, pa.ArrowException) as error:
            why = " ".join(str(error).split())
            raise SetupError(f"{file}: cannot be read: {why}; copy or write it again") from error
    ends = tuple(accumulate(part.rows for part in parts))
    digests = [sha256(file) for file in files]
    digest = digests[0] if path.is_file() else new_digest(json.dumps(digests).encode()).hexdigest()
    return Table(path, names, rows, digest, read_image=StoredImages(tuple(parts), ends))


def _parts(file: Path) -> "Iterator[tuple[Part, pa.Table]]":
    """The parts of a file with their rows; an empty file has one without rows."""
    import pyarrow.parquet as pq

    changed = file.stat().st_mtime_ns
    if file.suffix == ".arrow":
        content = _mapped(str(file))
        yield Part(str(file), None, content.num_rows, changed), content
        return
    with pq.ParquetFile(file) as source:
        for group in range(source.num_row_groups):
            content = source.read_row_group(group)
            yield Part(str(file), group, content.num_rows, changed), content
        if not source.num_row_groups:
            yield Part(str(file), 0, 0, changed), source.schema_arrow.empty_table()


@lru_cache(KEPT)
def _column(part: Part, name: str) -> "pa.ChunkedArray":
    import pyarrow.parquet as pq

    if part.group is None:
        return _mapped(part.file)[name]
    with pq.ParquetFile(part.file) as source:
        return source.read_row_group(part.group, columns=[name])[name]


def _mapped(file: str) -> "pa.Table":
    """An Arrow file, whose values are read from disk where they are used."""
    import pyarrow as pa

    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _names(content: "pa.Table", file: Path) -> tuple[str, ...]:
    names = tuple(content.column_names)
    if twice := [name for name in names if names.count(name) > 1]:
        raise SetupError(f"{file}: two columns are named {twice[0]!r}; rename one of them")
    return names


def _rows(content: "pa.Table", first: int) -> list[dict[str, Any]]:
    """The rows, with handles for bytes; `first` is the number of the first one."""
    columns, classes = {}, class_names(content.schema)
    for name in content.column_names:
        column = content[name]
        if _has_bytes(column.type):
            columns[name] = [_handle(cell, name, first + i) for i, cell in enumerate(column)]
        elif name in classes:
            columns[name] = [_name(cell, classes[name]) for cell in column.to_pylist()]
        else:
            columns[name] = column.to_pylist()
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names behind the numbers of columns of the type ClassLabel of Hugging Face datasets."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # no such dataset wrote the file: numbers stay numbers


def _name(number: Any, names: Sequence[str]) -> Any:
    """The name of a class; None for no class, which is -1 in these datasets."""
    known = isinstance(number, int) and 0 <= number < len(names)
    return names[number] if known else None


def _has_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == BYTES for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _handle(cell: Any, column: str, row: int, at: int | None = None) -> Any:
    """A handle for bytes, the path of a struct without them, None, or a list of these."""
    import pyarrow as pa

    if not cell.is_valid:
        return None
    if pa.types.is_list(cell.type) or pa.types.is_large_list(cell.type):
        return [_handle(one, column, row, i) for i, one in enumerate(cell.values)]
    if pa.types.is_struct(cell.type) and not cell[BYTES].is_valid:
        return cell[PATH].as_py() if PATH in cell else None
    return StoredImage(column, row, at)
