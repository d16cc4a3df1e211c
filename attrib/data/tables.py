"""Read a table of rows that a user brings, by the kind of its file."""

from collections.abc import Callable
from pathlib import Path

from attrib.data.arrow_tables import STATE, read_parquet, read_saved_dataset, read_shards
from attrib.data.benchmarks import SPLITS
from attrib.data.parquet_shards import chosen_split, has_shards, shards
from attrib.data.table_types import Table
from attrib.data.text_tables import read_delimited, read_json, read_json_lines
from attrib.errors import SetupError
from attrib.files import read_json as json_in

READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}
SEVERAL = "dataset_dict.json"  # of a folder with several saved datasets, the splits


def is_table(path: str | Path, split: str | None = None) -> bool:
    """Whether data is a user's table: a file of a known kind, or a dataset in a folder.

    A JSON file with a benchmark's split is that benchmark's.
    """
    path = Path(path)
    if path.is_dir():
        return (path / STATE).is_file() or (path / SEVERAL).is_file() or has_shards(path)
    suffix = path.suffix.lower()
    return suffix in READERS and not (suffix == ".json" and split in SPLITS)


def read_table(path: Path, split: str | None = None) -> tuple[Table, str | None]:
    """A table, and the split that is left to be found in a column of it.

    Args:
        path: the file or folder.
        split: of a folder with several datasets, the one to read.

    Raises:
        AttribError: The folder has several datasets and `split` names none of them.
        SetupError: A file is missing, or cannot be read.
    """
    if not path.exists():
        raise SetupError(f"{path}: no such file")
    if path.is_file():
        return READERS[path.suffix.lower()](path), split
    if not (path / SEVERAL).is_file():
        if (path / STATE).is_file():
            return read_saved_dataset(path), split
        return read_shards(path, shards(path, split)), None
    return read_saved_dataset(path / _part(path, split)), None


def _part(folder: Path, split: str | None) -> str:
    """The split to read of a folder with several; the only one needs no name."""
    listed = json_in(folder / SEVERAL)
    names = listed.get("splits") if isinstance(listed, dict) else None
    if not isinstance(names, list) or not names:
        raise SetupError(f"{folder / SEVERAL}: names no split")
    return Path(chosen_split(folder, split, [str(name) for name in names])).name
