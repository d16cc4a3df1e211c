"""Parts of a run on disk: per unit one Parquet file a table, and one that says how each row went.

The file about the rows is written last and commits the unit. It holds the digests of the others:
a part that was cut off, changed or mixed up is put aside and measured again.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attrib.data import Quarantined
from attrib.files import replacing
from attrib.runs.collecting import MEMORY, NOT_FINITE, Collected
from attrib.runs.units import Unit

ROWS_TABLE = "rows"
KEY = b"attrib"
STATUS = {NOT_FINITE: "nonfinite", MEMORY: "out of memory"}
STALE_SECONDS = 600.0  # no writer holds its temporary file open for so long
logger = getLogger("attrib")


class Damaged(Exception):
    """A part that is not what was written."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one unit gave.

    Attributes:
        tables: of the samples that could be used.
        used: their names, in order.
        failed: name -> what was wrong with it.
    """

    tables: dict[str, pa.Table]
    used: list[str]
    failed: dict[str, Quarantined]


class Parts:
    """The parts of a run, in the folder `parts` of the run's folder."""

    def __init__(self, out: Path):
        self.folder = out / "parts"

    def path(self, unit: Unit, table: str = ROWS_TABLE) -> Path:
        """Where the unit's part of a table is, or will be."""
        return self.folder / f"{unit.key}.{table}.parquet"

    def has(self, unit: Unit) -> bool:
        """Whether the unit was committed."""
        return self.path(unit).is_file()

    def write(self, unit: Unit, done: Collected) -> None:
        """Commit a unit: afterwards it is there whole, also if the power fails on the way."""
        digests = {}
        for name, frame in done.tables.items():
            assert name != ROWS_TABLE, f"{ROWS_TABLE} is the name of the table about the rows"
            table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            digests[name] = _write(self.path(unit, name), table)
        table = pa.Table.from_pylist(_rows(unit, done), schema=ROWS_SCHEMA)
        head = json.dumps({"tables": digests}).encode()
        _write(self.path(unit), table.replace_schema_metadata({KEY: head}))

    def read(self, unit: Unit) -> Part | None:
        """What the unit gave; None if it is not there, or was damaged and is now put aside."""
        if not self.has(unit):
            return None
        try:
            return self._read(unit)
        except Damaged as error:
            logger.warning("%s; its rows are measured again", error)
            self.drop(unit)
            return None

    def drop(self, unit: Unit) -> None:
        """Take a unit's commit back, so that it is measured again."""
        self.path(unit).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the temporary files of writers that were killed."""
        for path in [*self.folder.glob(".*.tmp"), *self.folder.parent.glob(".*.tmp")]:
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another rank was faster
                continue

    def _read(self, unit: Unit) -> Part:
        rows = self._table(self.path(unit), None)
        try:
            head = json.loads((rows.schema.metadata or {})[KEY])
            records = rows.to_pylist()
            failed = {r["example"]: _record(r) for r in records if r["status"] != "ok"}
            used = [r["example"] for r in records if r["status"] == "ok"]
        except (KeyError, ValueError) as error:
            raise self._aside(self.path(unit), str(error)) from error
        if [r["example"] for r in records] != [sample.id for sample in unit.samples]:
            raise self._aside(self.path(unit), "it is about other rows")
        tables = {
            name: self._table(self.path(unit, name), digest)
            for name, digest in head["tables"].items()
        }
        return Part(tables, used, failed)

    def _table(self, path: Path, digest: str | None) -> pa.Table:
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise self._aside(path, "is missing") from error
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise self._aside(path, "its bytes are not those that were written")
        try:
            return pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise self._aside(path, str(error)) from error

    def _aside(self, path: Path, reason: str) -> Damaged:
        """Rename a part out of the way; the error that names it."""
        if path.is_file():
            path.replace(path.with_suffix(".damaged"))
        return Damaged(f"{path}: damaged part put aside: {' '.join(reason.split())}")


ROWS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("example", "status", "file", "row", "field", "reason")]
)


def merged(parts: list[Part]) -> dict[str, pd.DataFrame]:
    """The tables over all parts, in their order."""
    names = dict.fromkeys(name for part in parts for name in part.tables)
    return {
        name: pa.concat_tables(
            [part.tables[name] for part in parts if name in part.tables],
            promote_options="permissive",
        ).to_pandas()
        for name in names
    }


def _rows(unit: Unit, done: Collected) -> list[dict[str, Any]]:
    failed = {sample.id: record for sample, record in done.failed}
    return [_row(sample.id, failed.get(sample.id)) for sample in unit.samples]


def _row(example: str, record: Quarantined | None) -> dict[str, Any]:
    if record is None:
        return {"example": example, "status": "ok"}
    # As JSON, since a row may be named by a number or by a word.
    said = {**asdict(record), "row": json.dumps(record.row)}
    return {"example": example, "status": STATUS.get(record.field, "bad row"), **said}


def _record(row: Mapping[str, Any]) -> Quarantined:
    return Quarantined(row["file"], json.loads(row["row"]), row["field"], row["reason"])


def _write(path: Path, table: pa.Table) -> str:
    """Write a Parquet file, whole or not at all; the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    with replacing(path) as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()
