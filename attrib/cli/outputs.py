"""What commands write and print: folders, manifests, quarantined rows, dry runs, log lines."""

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, invocation
from attrib.errors import SetupError
from attrib.files import write_text
from attrib.pipeline.options import AnalysisOptions
from attrib.progress import show_bytes

if TYPE_CHECKING:
    from attrib.data import Quarantined
    from attrib.model.vlm import VLM
    from attrib.runs import Run

LONGEST_NAME = 40
SHOWN = 5
READABLE = (".html", ".png", ".md", ".csv")  # what to open first, by suffix


def log(line: str) -> None:
    """Print a line on standard error; standard output is for results."""
    sys.stderr.write(f"{line}\n")  # in one call: other processes may write, too


def default_folder(command: str, options: AnalysisOptions) -> Path:
    """The default folder of results: the same options give the same folder.

    A photo is identified by its bytes, not by its name.
    """
    from attrib.pipeline.source import file_digests

    identifying = options.model_dump_json(exclude=set(options.all_free()))
    settled = identifying + json.dumps(file_digests(options))
    digest = hashlib.sha256(settled.encode()).hexdigest()[:8]
    source = options.data if options.prompt is None else "photo"
    return Path("runs") / f"{command}-{_slug(options.model)}-{_slug(source)}-{digest}"


def results_folder(command: str, options: AnalysisOptions) -> Path:
    """The folder for results: as asked for, or the default."""
    return options.out or default_folder(command, options)


def refuse_unwritable(out: Path) -> None:
    """Refuse a folder that cannot be created or written, as far as that is known in advance.

    Raises:
        SetupError: A file is in its place, or permissions are missing.
    """
    there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        raise SetupError(f"{out}: {there} is a file, not a folder; give another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SetupError(f"{out}: {there} cannot be written to; give another --out")


def write_manifest(out: Path, command: str, provenance: Mapping[str, Any]) -> Path:
    """Write `manifest.json`: provenance, and the command that makes the folder again."""
    manifest = {"command": command, "invocation": invocation(), **provenance}
    return write_text(out / "manifest.json", json.dumps(manifest, indent=2, allow_nan=False) + "\n")


def write_quarantined(out: Path, quarantined: Sequence["Quarantined"]) -> list[Path]:
    """Print the first quarantined rows and write all to `quarantined.csv`; without any, no file."""
    from attrib.pipeline.run import save_quarantined

    files = save_quarantined(quarantined, out)
    for row in quarantined[:SHOWN]:
        log(f"quarantined: {row}")
    if len(quarantined) > SHOWN:
        log(f"quarantined: and {len(quarantined) - SHOWN} more, see {files[0]}")
    return files


def print_files(files: Sequence[Path]) -> None:
    """Print the paths of written files, one a line, and at last the one to open."""
    for path in files:
        print(f"  {path}")
    found = [path for suffix in READABLE for path in files if path.suffix == suffix]
    if found:
        print(f"open {found[0]}")


def exit_code_for(quarantined: Sequence["Quarantined"], max_failures: int | None) -> int:
    """The exit code: done, or too many failures if there is a limit."""
    if max_failures is not None and len(quarantined) > max_failures:
        log(f"{len(quarantined)} rows quarantined, more than --max-failures {max_failures}")
        return ExitCode.TOO_MANY_FAILURES
    return ExitCode.DONE


def _slug(name: str) -> str:
    """A name as part of a file name; the hash in the folder's name distinguishes similar names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[-LONGEST_NAME:] or "unnamed"


def plan_lines(run: "Run", more: Iterable[str] = ()) -> Iterator[str]:
    """The plan of a run, line by line; `more` are lines of its analysis, such as the cost."""
    done = {shard.key for shard in run.committed()}
    left = [len(shard.samples) for shard in run.shards if shard.key not in done]
    passes = sum(math.ceil(samples / run.batch_size) for samples in left)
    yield f"dry run of {run.manifest['command']}: nothing is written"
    yield f"  data: {run.data.name} {run.data.split}".rstrip()
    yield f"  rows: {len(run.data)} usable, {len(run.data.quarantined)} quarantined"
    yield f"  shards: {len(run.shards)}, {len(done)} of them done"
    size, world = run.batch_size, run.rank.world
    yield f"  batch size: {size}; passes left: {passes}, over {world} process(es)"
    yield f"  model: {model_size(run.vlm)}"
    yield from (f"  {line}" for line in more)
    yield f"  results: {run.out}"


def model_size(vlm: "VLM") -> str:
    """Parameters, bytes, dtype and device of a model."""
    weights: list[Any] = list(vlm.model.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    dtype = str(vlm.dtype).removeprefix("torch.")
    count = sum(weight.numel() for weight in weights)
    return f"{vlm.name}, {count:,} parameters, {show_bytes(size)}, {dtype} on {vlm.device}"
