"""Shards of a run: fixed slices of a dataset's rows, and their tables on disk.

A shard is one Parquet file per table and one, written last, about the status of its rows. That file
commits the shard and holds the digests of the others: a shard that is incomplete, changed or
mixed up is renamed and measured again.
"""

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attrib.data import EditSample, Quarantined
from attrib.files import atomic_write
from attrib.runs.collected import MEMORY, NOT_FINITE, Collected, require_unique

ROWS = 16  # per shard at least: an interruption costs little; more where a pass takes more
ROWS_TABLE = "rows"
ROWS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example", "status", "file", "row", "field", "reason")]
)
KEY = b"attrib"
STATUS = {NOT_FINITE: "nonfinite", MEMORY: "out of memory"}
STALE_SECONDS = 600.0  # no writer keeps its temporary file open for that long
logger = getLogger("attrib")


@dataclass(frozen=True, eq=False)
class Shard:
    """The usable samples among neighbouring rows.

    Attributes:
        index: position among the slices of the rows.
        samples: in the order of the rows.
    """

    index: int
    samples: tuple[EditSample, ...]

    @property
    def key(self) -> str:
        """Name of the shard's files: its position and a digest of its samples' ids."""
        ids = "\n".join(sample.id for sample in self.samples)
        return f"{self.index:06d}-{hashlib.sha256(ids.encode()).hexdigest()[:8]}"


def split(samples: Sequence[EditSample], rows_per_shard: int | None = None) -> list[Shard]:
    """The shards of a dataset, of `rows_per_shard` rows each (default `ROWS`), in order.

    Rows are cut by their number where samples have one: a row that becomes unusable, or usable,
    changes its own shard only.

    Raises:
        AttribError: Two samples have the same id.
    """
    require_unique(samples)
    rows = [sample.meta.get("row") for sample in samples]
    numbers = [row for row in rows if isinstance(row, int)]
    if len(numbers) < len(rows) or numbers != sorted(numbers):
        numbers = list(range(len(samples)))
    size = rows_per_shard or ROWS
    slices = groupby(zip(numbers, samples, strict=True), key=lambda pair: pair[0] // size)
    return [Shard(index, tuple(sample for _, sample in pairs)) for index, pairs in slices]


class Damaged(Exception):
    """The file at `path` of a shard differs from what was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: damaged part renamed: {' '.join(reason.split())}")
        self.path = path


@dataclass(frozen=True, eq=False)
class ShardResult:
    """The content of a committed shard.

    Attributes:
        tables: of the samples that could be used.
        used: their ids, in order.
        failed: id -> quarantine record of the others.
    """

    tables: dict[str, pa.Table]
    used: list[str]
    failed: dict[str, Quarantined]


class ShardStore:
    """The committed shards of a run, in the folder `parts` of the run's folder."""

    def __init__(self, out: Path):
        self.folder = out / "parts"

    def path(self, shard: Shard, table: str = ROWS_TABLE) -> Path:
        """Path of a shard's table, whether it exists or not."""
        return self.folder / f"{shard.key}.{table}.parquet"

    def has(self, shard: Shard) -> bool:
        """Whether the shard was committed."""
        return self.path(shard).is_file()

    def write(self, shard: Shard, done: Collected) -> None:
        """Commit a shard; it is complete on disk afterwards, even if the power fails."""
        digests = {}
        for name, frame in done.tables.items():
            assert name != ROWS_TABLE, f"the table name {ROWS_TABLE} is reserved"
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            digests[name] = _write(self.path(shard, name), table)
        table = pa.Table.from_pylist(_status_rows(shard, done), schema=ROWS_SCHEMA)
        head = json.dumps({"tables": digests}).encode()
        _write(self.path(shard), table.replace_schema_metadata({KEY: head}))

    def read(self, shard: Shard) -> ShardResult | None:
        """The shard's content; None if it does not exist or is damaged (it is then renamed)."""
        if not (seen := _stamp(self.path(shard))):
            return None
        try:
            return _load(self.path(shard), [sample.id for sample in shard.samples])
        except Damaged as error:
            if _stamp(self.path(shard)) != seen:  # another process wrote it again meanwhile
                return None
            with contextlib.suppress(FileNotFoundError):  # another process renamed it first
                error.path.replace(error.path.with_suffix(".damaged"))
            logger.warning("%s; its rows are measured again", error)
            self.drop(shard)
            return None

    def drop(self, shard: Shard) -> None:
        """Remove a shard's commit, so that it is measured again."""
        self.path(shard).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the temporary files of writers that were killed."""
        for path in [*self.folder.glob(".*.tmp"), *self.folder.parent.glob(".*.tmp")]:
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another process removed it first
                continue


def read_committed(out: Path) -> list[ShardResult]:
    """The committed shards in a run's folder, which may be unfinished; changes nothing on disk.

    Shards that are damaged are left out. Of shards at one position, whose rows changed between two
    runs, the newest counts.
    """
    newest: dict[str, Path] = {}
    heads = (out / "parts").glob(f"*.{ROWS_TABLE}.parquet")
    for head in sorted(heads, key=lambda path: path.stat().st_mtime):
        newest[head.name.split("-")[0]] = head
    results = []
    for index in sorted(newest):
        with contextlib.suppress(Damaged):
            results.append(_load(newest[index]))
    return results


def merge(parts: Sequence[ShardResult]) -> dict[str, pd.DataFrame]:
    """The tables over all shards, in their order."""
    names = dict.fromkeys(name for part in parts for name in part.tables)
    return {
        name: pa.concat_tables(
            [part.tables[name] for part in parts if name in part.tables],
            promote_options="permissive",
        ).to_pandas()
        for name in names
    }


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(head: Path, ids: list[str] | None = None) -> ShardResult:
    """A shard's content from its table of rows, which must be those of `ids` if given."""
    rows = _load_table(head, None)
    try:
        digests = json.loads((rows.schema.metadata or {})[KEY])["tables"]
        records = rows.to_pylist()
        failed = {r["example"]: _record(r) for r in records if r["status"] != "ok"}
    except (KeyError, ValueError) as error:
        raise Damaged(head, str(error)) from error
    if ids is not None and [r["example"] for r in records] != ids:
        raise Damaged(head, "it is about other rows")
    key = head.name.removesuffix(f".{ROWS_TABLE}.parquet")
    tables = {
        name: _load_table(head.with_name(f"{key}.{name}.parquet"), digest)
        for name, digest in digests.items()
    }
    used = [r["example"] for r in records if r["status"] == "ok"]
    return ShardResult(tables, used, failed)


def _load_table(path: Path, digest: str | None) -> pa.Table:
    try:
        data = path.read_bytes()
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(path, "its bytes are not those that were written")
        return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except FileNotFoundError as error:
        raise Damaged(path, "is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise Damaged(path, str(error)) from error


def _status_rows(shard: Shard, done: Collected) -> list[dict[str, Any]]:
    failed = {sample.id: record for sample, record in done.failed}
    return [_status_row(sample.id, failed.get(sample.id)) for sample in shard.samples]


def _status_row(example: str, record: Quarantined | None) -> dict[str, Any]:
    if record is None:
        return {"example": example, "status": "ok"}
    # As JSON: a row may be named by a number or by a word.
    fields = {**asdict(record), "row": json.dumps(record.row)}
    return {"example": example, "status": STATUS.get(record.field, "bad row"), **fields}


def _record(row: Mapping[str, Any]) -> Quarantined:
    return Quarantined(row["file"], json.loads(row["row"]), row["field"], row["reason"])


def _write(path: Path, table: pa.Table) -> str:
    """Write a Parquet file atomically; the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
