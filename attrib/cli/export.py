"""`attrib export`: the tables of a finished run for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from attrib.cli.outputs import print_files


def add_to(app: typer.Typer, name: str) -> None:
    """Add the command to the command line."""
    app.command(name)(export)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    to: Annotated[
        Literal["csv", "xlsx", "parquet"],
        typer.Option(help="csv and parquet: a file per table; xlsx: a sheet per table."),
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(help="The workbook, or the folder of the files.", show_default="beside RUN"),
    ] = None,
) -> None:
    """Write the tables of a finished run as CSV, Parquet or a workbook."""
    from attrib.runs.export import export as write

    print_files(write(run, to, out))
