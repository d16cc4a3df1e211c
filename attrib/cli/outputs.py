"""What a command leaves behind: a folder with a manifest, and rows that were set aside."""

import csv
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, invocation
from attrib.cli.options import AnalysisOptions
from attrib.environment import sha256
from attrib.errors import SetupError
from attrib.files import write_text

if TYPE_CHECKING:
    from attrib.data import Quarantined

LONGEST_NAME = 40
SHOWN = 5


def log(line: str) -> None:
    """A line about the run, on standard error: standard output is for results."""
    sys.stderr.write(f"{line}\n")  # at once: other processes may be writing theirs


def default_folder(command: str, options: AnalysisOptions) -> Path:
    """The folder for results: the same for the same options, another for others.

    A photo is known by its bytes: another picture under the same name has another folder.
    """
    settled = options.model_dump_json(exclude=set(options.free)) + json.dumps(digests(options))
    digest = hashlib.sha256(settled.encode()).hexdigest()[:8]
    source = options.data if options.prompt is None else "photo"
    return Path("runs") / f"{command}-{_slug(options.model)}-{_slug(source)}-{digest}"


def results_folder(command: str, options: AnalysisOptions) -> Path:
    """The folder for results: the one asked for, or the default one."""
    return options.out or default_folder(command, options)


def refuse_unwritable(out: Path) -> None:
    """Refuse a folder that cannot be made or written, as far as that shows in advance.

    Raises:
        SetupError: naming what is in the way.
    """
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise SetupError(f"{out}: {there} is a file, not a folder; give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SetupError(f"{out}: {there} cannot be written to; give another --out")


def digests(options: AnalysisOptions) -> dict[str, str]:
    """SHA-256 of each file that an option names, such as a photo, by the name of the option."""
    files = {name: value for name, value in options if isinstance(value, Path) and value.is_file()}
    return {f"{name}_sha256": sha256(path) for name, path in files.items() if name != "out"}


def write_manifest(out: Path, command: str, provenance: Mapping[str, Any]) -> Path:
    """Write `manifest.json`: how the folder was made, and the command that makes it again."""
    manifest = {"command": command, "invocation": invocation(), **provenance}
    return write_text(out / "manifest.json", json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def write_quarantined(out: Path, quarantined: Sequence["Quarantined"]) -> list[Path]:
    """Write `quarantined.csv` where rows were set aside, and say so; without any, no file."""
    path = out / "quarantined.csv"
    if not quarantined:
        path.unlink(missing_ok=True)  # of an earlier run into the same folder
        return []
    for row in quarantined[:SHOWN]:
        log(f"quarantined: {row}")
    if len(quarantined) > SHOWN:
        log(f"quarantined: and {len(quarantined) - SHOWN} more, see {path}")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "row", "field", "reason"])
    for row in quarantined:
        table.writerow([_inert(row.file), row.row, row.field, _inert(row.reason)])
    return [write_text(path, text.getvalue())]


def exit_code_for(quarantined: Sequence["Quarantined"], max_failures: int | None) -> int:
    """Done, or too many failures, where a limit was given."""
    if max_failures is not None and len(quarantined) > max_failures:
        log(f"{len(quarantined)} rows quarantined, more than --max-failures {max_failures}")
        return ExitCode.TOO_MANY_FAILURES
    return ExitCode.DONE


def _slug(name: str) -> str:
    """A name as part of a file name: the hash in the folder keeps different names apart."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[-LONGEST_NAME:] or "unnamed"


def _inert(cell: str) -> str:
    # Spreadsheets run cells that begin like a formula.
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
