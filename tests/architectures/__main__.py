"""Check a small model of every image-text-to-text type; write the table of docs/models.md.

    python -m tests.architectures                      # all types, two at a time; about 3 minutes
    python -m tests.architectures --only llava gemma4  # these with variants, printed
    python -m tests.architectures --compare            # all; fails if one passes less than recorded

Rows are kept in a folder as they are ready: an interrupted run goes on where it stopped.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from tests.architectures.isolated import run
from tests.architectures.measure import Row
from tests.architectures.registry import NAMES, type_of
from tests.architectures.table import RECORD, failures, passes, totals, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a line per type, and write or compare. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="TYPE")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--folder", type=Path, default=Path("build/architectures"))
    parser.add_argument("--compare", action="store_true", help="write nothing; report losses")
    parser.add_argument("--trace", action="store_true", help="tracebacks of what is not built")
    options = parser.parse_args(arguments)
    rows = []
    chosen = options.only or NAMES
    names = [name for name in NAMES if name in chosen or type_of(name) in chosen]
    for row in run(names, options.jobs, options.folder):
        rows.append(row)
        _say(row, options.trace)
    _print(f"{totals(rows)} types pass every check")
    if options.compare:
        return _compare(rows)
    if not options.only:
        write(rows)
    return 0


def _say(row: Row, trace: bool) -> None:
    lens = [f"TransformerLens: {row['bridge']}"] * bool(row["bridge"])
    remarks = "; ".join([*lens, *row["remarks"], *failures(row)])
    passed = f"{row['passed']}/{row['total']}"
    _print(f"{row['type']:24} {row['processor']:12} {passed:>6} {row['seconds']:5.1f} s  {remarks}")
    if trace and "trace" in row:
        _print(row["trace"])


def _compare(rows: Sequence[Row]) -> int:
    """Whether a type passes less than in the record: 1 then, with a line for each."""
    recorded = {row["type"]: row for row in json.loads(RECORD.read_text())["rows"]}
    lost = [row["type"] for row in rows if _worth(recorded.get(row["type"], row)) > _worth(row)]
    new = [row["type"] for row in rows if row["type"] not in recorded]
    for name in lost:
        _print(f"{name} passed more in {RECORD.name} than it does now")
    for name in new:
        _print(f"{name} is not in {RECORD.name}: run python -m tests.architectures")
    return int(bool(lost or new))


def _worth(row: Row) -> int:
    """How much of a row is as it should be: all checks, and the cache of TransformerLens."""
    return passes(row) + (row["bridge"] == "equal")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
