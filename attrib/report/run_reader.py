"""Runs read from their folders, finished or not."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attrib.data import Quarantined
from attrib.errors import AttribError
from attrib.results import Result
from attrib.runs import manifest as manifests
from attrib.runs.shards import merge, read_committed

MAIN = "result"  # the name of the file of a run's main table


@dataclass(frozen=True, eq=False)
class RunRead:
    """A run in a folder.

    Attributes:
        folder: of the run.
        result: its main table.
        tables: its other tables, by name.
        done: number of rows that were measured or quarantined.
        total: number of rows of the data; equal to `done` if the run is finished.
        quarantined: the rows that could not be used.
    """

    folder: Path
    result: Result
    tables: Mapping[str, Result] = field(default_factory=dict)
    done: int = 0
    total: int = 0
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def name(self) -> str:
        """The analysis; for a sweep with its modality."""
        if self.result.analysis != "sweep":
            return self.result.analysis
        return f"sweep {self.result.frame['modality'].iloc[0]}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of the analysis."""
        return dict(self.result.provenance.get("options", {}))


def read_runs(folders: Iterable[Path]) -> list[RunRead]:
    """The runs in folders that are runs or hold runs; nothing is changed.

    Raises:
        AttribError: A folder holds no run, or a table in it is damaged.
    """
    found: dict[Path, RunRead] = {}
    for folder in folders:
        inside = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        runs = [run for one in inside if (run := read_run(one))]
        if not runs:
            raise AttribError(
                f"--from {folder}: no results of an analysis there; give the folder of `attrib "
                "select` (with --words, that of one word), or that of a run such as `attrib "
                "contributions --out`"
            )
        found |= {run.folder.resolve(): run for run in runs}
    return list(found.values())


def read_run(folder: Path) -> RunRead | None:
    """The run in a folder, finished or not; None if there is none."""
    made = manifests.stored(folder)
    try:
        if (folder / f"{MAIN}.parquet").is_file():
            return _finished(folder, made)
        return _unfinished(folder, made) if "command" in made else None
    except (ValueError, OSError) as error:
        raise AttribError(f"{folder}: {error}") from error


def _finished(folder: Path, made: Mapping[str, Any]) -> RunRead:
    tables = {file.stem: Result.load(file) for file in sorted(folder.glob("*.parquet"))}
    result = tables.pop(MAIN)
    quarantined = _quarantined(folder / "quarantined.csv")
    rows = int(made.get("examples", result.examples))
    rows += int(made.get("quarantined", len(quarantined)))
    return RunRead(folder, replace(result, tables=tables), tables, rows, rows, quarantined)


def _unfinished(folder: Path, made: Mapping[str, Any]) -> RunRead | None:
    shards = read_committed(folder)
    frames = merge(shards)
    main = made["command"]
    if main not in frames or frames[main].empty:
        return None
    provenance = {name: value for name, value in made.items() if name != "layout"}
    tables = {name: Result(name, frame, provenance) for name, frame in frames.items()}
    failed = tuple(record for shard in shards for record in shard.failed.values())
    data = made.get("data", {})
    unreadable = int(data.get("rows_quarantined") or 0)
    done = sum(len(shard.used) for shard in shards) + len(failed) + unreadable
    total = int(data.get("rows_read") or done)
    result = replace(tables.pop(main), tables=tables)
    return RunRead(folder, result, tables, done, total, failed)


def _quarantined(path: Path) -> tuple[Quarantined, ...]:
    """The rows of a `quarantined.csv`."""
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Quarantined(row["file"], row["row"] or None, row["field"], row["reason"])
            for row in csv.DictReader(file)
        )
