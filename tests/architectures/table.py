"""The table of `docs/models.md` and the record of the run, from the rows."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from attrib.files import write_text
from tests.architectures.isolated import ROOT, versions
from tests.architectures.measure import Row
from tests.architectures.registry import type_of

PAGE = ROOT / "docs" / "models.md"
RECORD = ROOT / "docs" / "architectures.json"
START = "<!-- architectures: written by `python -m tests.architectures` -->"
END = "<!-- architectures: end -->"
SHOWN = 140  # characters of a detail; the record has all
FIELDS = ("type", "model", "scope", "processor", "passed", "total", "failed", "remarks", "bridge")


def passes(row: Row) -> bool:
    """Whether the type passes every check."""
    return bool(row["total"]) and row["passed"] == row["total"]


def bridged(rows: Sequence[Row]) -> str:
    """How many types and variants with a bridge have its cache: "30 of 30"."""
    found = [row["bridge"] for row in rows if row["bridge"]]
    return f"{found.count('equal')} of {len(found)}"


def totals(rows: Sequence[Row]) -> str:
    """How many types pass, each with all its variants: "52 of 84"."""
    types = {type_of(row["type"]) for row in rows}
    failed = {type_of(row["type"]) for row in rows if not passes(row)}
    return f"{len(types - failed)} of {len(types)}"


def write(rows: Sequence[Row], page: Path = PAGE, record: Path = RECORD) -> None:
    """Write the record of a run, and the table between its markers in the page.

    Raises:
        ValueError: The page lacks the markers.
    """
    rows = sorted(rows, key=lambda row: row["type"])
    kept = [{key: row[key] for key in FIELDS} for row in rows]
    about = {"date": datetime.date.today().isoformat(), "versions": versions()}
    write_text(record, json.dumps(about | {"rows": kept}, indent=1) + "\n")
    before, after = _around(page.read_text())
    write_text(page, before + START + "\n\n" + markdown(rows, about) + "\n" + END + after)


def _around(text: str) -> tuple[str, str]:
    before, found, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{PAGE.name} lacks the lines {START!r} and {END!r}")
    return before, after


def markdown(rows: Sequence[Row], about: dict) -> str:
    """A sentence with the totals, and one table for each scope."""
    readers = [row for row in rows if row["scope"] == "decoder-only"]
    others = [row for row in rows if row["scope"] != "decoder-only"]
    numbers = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    head = (
        f"{totals(readers)} decoder-only types pass every check "
        f"({numbers}; float32 on a CPU; {about['date']}). Of the types and variants that "
        f"TransformerLens can run, {bridged(readers)} have its logits, states, attention and "
        "writes.\n"
    )
    lines = ["| type | processor | checks passed | TransformerLens | remarks |"]
    lines += ["|---|---|---|---|---|"]
    lines += [_line(row) for row in readers]
    lines += ["", "Not decoder-only readers of pictures:", ""]
    lines += ["| type | why | what `VLM(model)` says |", "|---|---|---|"]
    lines += [f"| `{row['type']}` | {row['scope']} | {_remarks(row)} |" for row in others]
    return head + "\n" + "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    passed = f"{row['passed']} of {row['total']}" if row["total"] else "-"
    return (
        f"| `{row['type']}` | {row['processor']} | {passed} | {row['bridge']} | {_remarks(row)} |"
    )


def _remarks(row: Row) -> str:
    text = "; ".join([*row["remarks"], *failures(row)])
    return text.replace("|", "\\|").replace("<", "&lt;")


def failures(row: Row) -> list[str]:
    """What failed: the first check with its detail, the names of the others."""
    if not row["failed"]:
        return []
    (check, detail), *others = row["failed"]
    first = f"{check}: no, {detail if len(detail) <= SHOWN else detail[:SHOWN] + ' ...'}"
    names = ", ".join(name for name, _ in others)
    return [first] + [f"also {names}"] * bool(others)
