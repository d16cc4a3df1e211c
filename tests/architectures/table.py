"""The table of `docs/models.md` and the record of the run, from the rows."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from attrib.files import write_text
from tests.architectures.isolated import ROOT, versions
from tests.architectures.measure import Row

PAGE = ROOT / "docs" / "models.md"
RECORD = ROOT / "docs" / "architectures.json"
START = "<!-- architectures: written by `python -m tests.architectures` -->"
END = "<!-- architectures: end -->"


def passes(row: Row) -> bool:
    """Whether the type passes every check."""
    return bool(row["total"]) and row["passed"] == row["total"]


def write(rows: Sequence[Row], page: Path = PAGE, record: Path = RECORD) -> None:
    """Write the record of a run, and the table between its markers in the page.

    Raises:
        ValueError: The page lacks the markers.
    """
    rows = sorted(rows, key=lambda row: row["type"])
    kept = [{key: value for key, value in row.items() if key != "trace"} for row in rows]
    about = {"date": datetime.date.today().isoformat(), "versions": versions()}
    write_text(record, json.dumps(about | {"rows": kept}, indent=1) + "\n")
    before, middle, after = _parts(page.read_text())
    del middle
    write_text(page, before + START + "\n\n" + markdown(rows, about) + "\n" + END + after)


def _parts(text: str) -> tuple[str, str, str]:
    before, found, rest = text.partition(START)
    middle, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{PAGE.name} lacks the lines {START!r} and {END!r}")
    return before, middle, after


def markdown(rows: Sequence[Row], about: dict) -> str:
    """A sentence with the totals, and one table for each scope."""
    readers = [row for row in rows if row["scope"] == "decoder-only"]
    others = [row for row in rows if row["scope"] != "decoder-only"]
    numbers = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    head = (
        f"{sum(map(passes, readers))} of {len(readers)} decoder-only types pass every check "
        f"({numbers}; float32 on a CPU; {about['date']}).\n"
    )
    lines = ["| type | processor | checks passed | remarks |", "|---|---|---|---|"]
    lines += [_line(row) for row in readers]
    lines += ["", "Not decoder-only readers of pictures:", ""]
    lines += ["| type | why | what `VLM(model)` says |", "|---|---|---|"]
    lines += [f"| `{row['type']}` | {row['scope']} | {_remarks(row)} |" for row in others]
    return head + "\n" + "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    passed = f"{row['passed']} of {row['total']}" if row["total"] else "-"
    return f"| `{row['type']}` | {row['processor']} | {passed} | {_remarks(row)} |"


def _remarks(row: Row) -> str:
    text = "; ".join(row["remarks"]).replace("|", "\\|").replace("<", "&lt;")
    return text.replace("\n", " ")
