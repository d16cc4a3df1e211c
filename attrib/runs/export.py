"""The tables of a finished run for other programs: CSV, Parquet, or a workbook.

The columns have the names that they have in the run's folder. Spreadsheets evaluate a cell that
begins like a formula: in CSV and in workbooks such text gets an apostrophe in front, numbers stay.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from attrib.errors import AttribError, SetupError
from attrib.files import atomic_write
from attrib.results import MAIN_FILE
from attrib.runs.manifest import stored

Format = Literal["csv", "xlsx", "parquet"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
MAX_ROWS = 1_048_576  # of a sheet, with its header
MAX_CELL = 32_767  # characters of a cell
MAX_TITLE = 31  # characters of a sheet's name
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # a workbook cannot hold them


def run_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of a run's folder by name; the main one of an analysis has the analysis's name.

    Raises:
        AttribError: The folder is no run's, or the run has not finished.
        SetupError: A table is damaged.
    """
    folder = Path(folder)
    files = {file.stem: file for end in ("csv", "parquet") for file in folder.glob(f"*.{end}")}
    files.pop("quarantined", None)  # of an unfinished run there may be no other
    if not files:
        started = "command" in stored(folder)
        why = "the run has not finished; its command continues it" if started else "no run's folder"
        raise AttribError(f"{folder}: holds no table: {why}")
    listed = folder / "quarantined.csv"
    files |= {"quarantined": listed} if listed.is_file() else {}
    name = str(stored(folder).get("command", MAIN_FILE.partition(".")[0]))
    named = {name if file.name == MAIN_FILE else stem: file for stem, file in files.items()}
    first = sorted(named, key=lambda one: (named[one].name != MAIN_FILE, one))
    return {one: _read(named[one]) for one in first}


def export(folder: str | Path, to: Format, out: str | Path | None = None) -> list[Path]:
    """Write the tables of a run.

    Args:
        folder: the run's folder.
        to: "csv" and "parquet" make a file per table, "xlsx" one workbook with a sheet per table.
        out: the workbook, or the folder of the files; by default beside the run's folder.

    Returns:
        The files.

    Raises:
        AttribError: The folder is no run's, the run has not finished, or a table is too long.
        SetupError: A table is damaged, or openpyxl, which writes workbooks, is not installed.
    """
    folder, tables = Path(folder), run_tables(folder)
    if to == "xlsx":
        return [_workbook(tables, Path(out or f"{folder}.xlsx"))]
    place, files = Path(out or f"{folder}-{to}"), []
    if place.is_file():
        raise AttribError(f"{place}: a file; {to} makes a file per table: give a folder")
    for name, table in tables.items():
        files.append(place / f"{name}.{to}")
        with atomic_write(files[-1]) as file:
            if to == "parquet":
                table.to_parquet(file, index=False)
            else:
                file.write(inert(table).to_csv(index=False, lineterminator="\n").encode())
    return files


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before text that a spreadsheet would evaluate."""
    return pd.DataFrame({inert_text(name): table[name].map(inert_text) for name in table.columns})


def inert_text(cell: Any) -> Any:
    """Text that begins like a formula, with an apostrophe before it; other values as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _read(file: Path) -> pd.DataFrame:
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        return pd.read_csv(file, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        why = " ".join(str(error).split())
        raise SetupError(f"{file}: the table is damaged: {why}") from error


def _workbook(tables: Mapping[str, pd.DataFrame], out: Path) -> Path:
    try:
        workbooks = importlib.import_module("openpyxl")
    except ImportError as error:
        raise SetupError(
            "openpyxl, which writes workbooks, is not installed: pip install 'attrib[xlsx]'; or "
            "give --to csv"
        ) from error
    if out.is_dir():
        raise AttribError(f"{out}: a folder; give the name of the workbook, such as results.xlsx")
    if long := [name for name, table in tables.items() if len(table) >= MAX_ROWS]:
        raise AttribError(f"{long[0]}: more rows than a sheet can hold; give --to csv or parquet")
    book = workbooks.Workbook(write_only=True)
    for name, table in tables.items():
        sheet = book.create_sheet(name[:MAX_TITLE])
        sheet.append([inert_text(column) for column in table.columns])
        for row in table.itertuples(index=False, name=None):
            sheet.append([_cell(value) for value in row])
    with atomic_write(out) as file:
        book.save(file)
    return out


def _cell(value: Any) -> Any:
    """A value as a workbook can hold it."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("", inert_text(value))[:MAX_CELL]
    if hasattr(value, "tolist"):  # a number or an array of NumPy's
        value = value.tolist()
    if isinstance(value, list | dict):
        return str(value)
    return None if value is pd.NA or value != value else value
