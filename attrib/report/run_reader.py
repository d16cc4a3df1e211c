"""The runs that a report on layers rests on, read from their folders, finished or not."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attrib.data import Quarantined
from attrib.errors import AttribError
from attrib.results import Result
from attrib.runs import manifest as manifests
from attrib.runs.shards import KEY, ROWS_TABLE

MAIN = "result"  # the name of the file of a run's main table


@dataclass(frozen=True, eq=False)
class RunRead:
    """A run as its folder has it.

    Attributes:
        folder: where it was read.
        result: its main table, over the examples that are there.
        tables: its other tables, by name.
        done: how many rows were measured or set aside.
        of: how many there are; the same number where the run is finished.
        quarantined: the rows that were set aside.
    """

    folder: Path
    result: Result
    tables: Mapping[str, Result] = field(default_factory=dict)
    done: int = 0
    of: int = 0
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def name(self) -> str:
        """What it is: the analysis, of a sweep with its modality."""
        if self.result.analysis != "sweep":
            return self.result.analysis
        return f"sweep {self.result.frame['modality'].iloc[0]}"

    @property
    def options(self) -> dict[str, Any]:
        """What the analysis was told."""
        return dict(self.result.provenance.get("options", {}))


def read_runs(folders: Iterable[Path]) -> list[RunRead]:
    """The runs in some folders, each of which is a run or a folder of runs; nothing is changed.

    Raises:
        AttribError: a folder holds no run, or a table in it is damaged.
    """
    found: dict[Path, RunRead] = {}
    for folder in folders:
        there = [run for one in _candidates(folder) if (run := read_run(one))]
        if not there:
            raise AttribError(
                f"--from {folder}: no results of an analysis there; give the folder of `attrib "
                "select` (with --words, that of one word), or that of a run such as `attrib "
                "contributions --out`"
            )
        found |= {run.folder.resolve(): run for run in there}
    return list(found.values())


def read_run(folder: Path) -> RunRead | None:
    """The run in a folder: its results where it is finished, else what it has; None: nothing."""
    made = manifests.stored(folder)
    try:
        if (folder / f"{MAIN}.parquet").is_file():
            return _finished(folder, made)
        return _unfinished(folder, made) if "command" in made else None
    except (ValueError, OSError) as error:
        raise AttribError(f"{folder}: {error}") from error


def _candidates(folder: Path) -> list[Path]:
    return [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]


def _finished(folder: Path, made: Mapping[str, Any]) -> RunRead:
    loaded = {file.stem: Result.load(file) for file in sorted(folder.glob("*.parquet"))}
    result = loaded.pop(MAIN)
    aside = _listed(folder / "quarantined.csv")
    rows = int(made.get("examples", result.examples)) + int(made.get("quarantined", len(aside)))
    return RunRead(folder, result, loaded, rows, rows, aside)


def _unfinished(folder: Path, made: Mapping[str, Any]) -> RunRead | None:
    """What the committed parts of an interrupted run hold."""
    parts = [part for file in _heads(folder / "parts") if (part := _part(file))]
    rows = [row for _, mine in parts for row in mine]
    frames = {
        name: pa.concat_tables([t[name] for t, _ in parts if name in t],
                               promote_options="permissive").to_pandas()
        for name in dict.fromkeys(name for t, _ in parts for name in t)
    }  # fmt: skip
    main = made["command"]
    if main not in frames or frames[main].empty:
        return None
    provenance = {name: value for name, value in made.items() if name != "layout"}
    results = {name: Result(name, frame, provenance) for name, frame in frames.items()}
    data = made.get("data", {})
    set_aside = int(data.get("rows_quarantined") or 0)
    of = int(data.get("rows_read") or len(rows) + set_aside)
    failed = tuple(_record(row) for row in rows if row["status"] != "ok")
    result = results.pop(main)
    return RunRead(folder, result, results, len(rows) + set_aside, of, failed)


def _heads(parts: Path) -> Iterator[Path]:
    """The newest file about the rows of each unit; an older one is of rows that were mended."""
    newest: dict[str, Path] = {}
    for file in sorted(parts.glob(f"*.{ROWS_TABLE}.parquet"), key=lambda f: f.stat().st_mtime):
        newest[file.name.split("-")[0]] = file
    yield from (newest[unit] for unit in sorted(newest))


def _part(head: Path) -> tuple[dict[str, pa.Table], list[dict[str, Any]]] | None:
    """A unit's tables and rows; None for one that is damaged, which is measured again one day."""
    try:
        rows = pq.read_table(head)
        digests = json.loads((rows.schema.metadata or {})[KEY])["tables"]
        unit = head.name.removesuffix(f".{ROWS_TABLE}.parquet")
        tables = {
            name: _checked(head.with_name(f"{unit}.{name}.parquet"), digest)
            for name, digest in digests.items()
        }
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    return tables, rows.to_pylist()


def _checked(path: Path, digest: str) -> pa.Table:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path}: not the bytes that were written")
    return pq.read_table(io.BytesIO(data))


def _record(row: Mapping[str, Any]) -> Quarantined:
    return Quarantined(row["file"], json.loads(row["row"]), row["field"], row["reason"])


def _listed(path: Path) -> tuple[Quarantined, ...]:
    """The rows of a `quarantined.csv`."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Quarantined(row["file"], row["row"] or None, row["field"], row["reason"])
            for row in csv.DictReader(file)
        )
