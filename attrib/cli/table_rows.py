"""Rows of data for commands that are about one photo: `--data FILE --row N`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrib.cli.outputs import SHOWN, log
from attrib.errors import AttribError
from attrib.pipeline.options import NAMED_SPLITS, SourceOptions, option
from attrib.pipeline.source import reading

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample


class RowOptions(SourceOptions):
    """Where a command about one photo takes it from, if not from its own options."""

    data: str | None = option(
        None, "A table of your own, or other data, instead of a photo.", panel="Data"
    )
    split: str | None = option(None, "Part of the data.", panel="Data", shown="all of a table")
    row: int | None = option(None, "Row of the data, counted from 0.", panel="Data", ge=0)


def refuse_without_data(options: RowOptions) -> None:
    """Refuse options of data where none is given.

    Raises:
        AttribError: One is given.
    """
    if options.data is None:
        for name in ("row", "split", *SourceOptions.model_fields):
            if getattr(options, name) is not None:
                raise AttribError(f"--{name.replace('_', '-')}: it belongs to data; give --data")


def refuse_with_data(options: RowOptions, names: Sequence[str]) -> None:
    """Refuse what the rows of data have themselves.

    Raises:
        AttribError: One of the options `names` is given beside the data.
    """
    for name in names if options.data is not None else ():
        if getattr(options, name) is not None:
            flag = name.replace("_", "-")
            raise AttribError(f"--{flag}: the rows of --data have it; give one of them")


def read_rows(options: RowOptions) -> "EditData":
    """The data of `--data`; rows that cannot be used are named on standard error."""
    from attrib.data import load

    assert options.data is not None
    split = options.split or NAMED_SPLITS.get(options.data)
    data = load(options.data, split, **reading(options))
    for row in data.quarantined[:SHOWN]:
        log(f"quarantined: {row}")
    if len(data.quarantined) > SHOWN:
        log(f"quarantined: and {len(data.quarantined) - SHOWN} more")
    return data


def chosen_row(data: "EditData", row: int | None) -> "EditSample":
    """The sample of a row, by default the first one that can be used.

    Raises:
        AttribError: There is no such row, or it cannot be used.
    """
    found = [sample for sample in data if row in (None, sample.meta["row"])]
    if found:
        return found[0]
    reasons = [bad for bad in data.quarantined if row in (None, bad.row)]
    if reasons and row is None:
        raise AttribError(f"{data.name}: no row can be used; the first: {reasons[0]}")
    if reasons:
        raise AttribError(f"--row {row}: {reasons[0]}")
    rows = [sample.meta["row"] for sample in data] + [
        bad.row for bad in data.quarantined if isinstance(bad.row, int)
    ]
    if not rows:
        raise AttribError(f"{data.name}: no row can be used")
    raise AttribError(f"--row {row}: {data.name} has rows {min(rows)} to {max(rows)}")
