"""Measure every type in a process of its own, a few at a time, and keep each row at once."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from tests.architectures.measure import Row, empty, measure

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds a type may take


def versions() -> dict[str, str]:
    """The versions that the table depends on."""
    return {
        name: version(name) for name in ("transformers", "torch", "tokenizers", "transformer-lens")
    }


def digest() -> str:
    """What rows depend on: the sources of the package and of the models, and the versions."""
    folders = (ROOT / "attrib", ROOT / "tests" / "architectures")
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    sources = [file.read_bytes() for file in [*files, ROOT / "tests" / "tiny_models.py"]]
    return hashlib.sha256(repr(versions()).encode() + b"".join(sources)).hexdigest()[:12]


def run(names: Sequence[str], jobs: int, folder: Path) -> Iterator[Row]:
    """The rows of these types as they are ready; each is saved in `folder` first.

    A type in the folder that was measured with the same sources and versions is not run again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, waiting = digest(), []
    for name in names:
        row = _saved(folder, name, key)
        if row is None:
            waiting.append(name)
        else:
            yield row
    torch.set_num_threads(1)  # before the processes are forked: one core each
    running: dict[Any, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            _start(waiting.pop(0), running)
        for row in _finished(running):
            path = _file(folder, row["type"])
            path.write_text(json.dumps(row | {"digest": key}, indent=1))
            yield row


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(': ', '-').replace(' ', '-')}.json"


def _saved(folder: Path, name: str, key: str) -> Row | None:
    try:
        row = json.loads(_file(folder, name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # an interrupted write counts as none
        return None
    return row if row.pop("digest", None) == key else None


def _start(name: str, running: dict[Any, tuple[str, Any, float]]) -> None:
    context = multiprocessing.get_context("fork")  # all imports are done
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(name, theirs), daemon=True)
    process.start()
    theirs.close()
    running[ours] = name, process, time.monotonic()


def _measure(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(measure(name))


def _finished(running: dict[Any, tuple[str, Any, float]]) -> Iterator[Row]:
    ready = set(wait(list(running), timeout=1.0))
    for pipe, (name, process, start) in list(running.items()):
        late = time.monotonic() - start > LIMIT
        if pipe not in ready and not late:
            continue
        del running[pipe]
        try:
            row = pipe.recv() if pipe in ready else None
        except EOFError:  # the process died
            row = None
        if row is None:
            process.kill()
        process.join()
        yield row or _lost(name, late, process.exitcode)


def _lost(name: str, late: bool, code: int | None) -> Row:
    why = f"took more than {LIMIT:.0f} seconds" if late else f"its process died, exit code {code}"
    return empty(name) | {"remarks": [why], "seconds": LIMIT}
