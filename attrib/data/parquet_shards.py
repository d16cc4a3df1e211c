"""Folders of Parquet files as on the Hugging Face hub: `data/train-00000-of-00002.parquet`."""

import re
from collections.abc import Sequence
from pathlib import Path

from attrib.errors import AttribError, SetupError

SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.parquet")


def has_shards(folder: Path) -> bool:
    """Whether a folder, or `data` in it, has such files."""
    return bool(_matches(folder))


def chosen_split(folder: Path, split: str | None, names: Sequence[str]) -> str:
    """The split to read of a folder with some; the only one needs no name.

    Raises:
        AttribError: `split` is none of them, or there are several and none is named.
    """
    if split is None and len(names) == 1:
        return names[0]
    if split is None or split not in names:
        what = f"has no split {split!r}; choose from" if split else "needs a split: one of"
        raise AttribError(f"{folder} {what} {', '.join(names)}")
    return split


def shards(folder: Path, split: str | None) -> list[Path]:
    """The files of a split in order; the only split needs no name.

    Raises:
        AttribError: The folder has no such split, or several and none is named.
        SetupError: A file of the split is missing.
    """
    by_split: dict[str, dict[int, tuple[Path, int]]] = {}
    for file, match in _matches(folder):
        found = by_split.setdefault(match["split"], {})
        found[int(match["number"])] = (file, int(match["count"]))
    split = chosen_split(folder, split, sorted(by_split))
    files = by_split[split]
    count = max(of for _, of in files.values())
    if missing := [number for number in range(count) if number not in files]:
        one = f"{split}-{missing[0]:05d}-of-{count:05d}.parquet"
        raise SetupError(f"{folder}: {one} is missing; {len(files)} of {count} files are there")
    return [files[number][0] for number in range(count)]


def _matches(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    files = sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")])
    return [(file, match) for file in files if (match := SHARD.fullmatch(file.name))]
