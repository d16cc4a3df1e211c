"""Kill a command with SIGKILL at random moments, resume it, and compare what it leaves.

    python -m benchmarks.kill_sweep --kills 100 -- sweep --modality text --limit 64

The command first runs uninterrupted. Then it is started repeatedly on another folder and killed:
one time in four at any moment, otherwise within about two units of work after a new unit, since a
small run spends most of its time on starting. A run that finishes is compared with the
uninterrupted one, bit for bit, and the next starts in a new folder. The last one is compared too.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq

DEFAULT = "sweep --modality text --limit 64"
# Imported once, before the processes fork, so that a kill hits the work and not the imports.
PRELOADED = [
    "attrib.cli",
    "attrib.runs",
    "attrib.analyses.sensitivity",
    "attrib.plots",
    "attrib.report",
    "attrib.cli.analyse",
    "attrib.pipeline.interventions",
    "attrib.pipeline.observations",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
]
KILLED = -9  # exit code of a process that SIGKILL ended
ANY_MOMENT = 0.25  # share of kills at a random moment


@dataclass
class Kills:
    """Result of `kill_and_resume`.

    Attributes:
        seconds: duration of the uninterrupted run.
        units: its number of units.
        committed: number of units that existed at each kill.
        unfinished: kills during the writing of a file.
        finished: runs that finished after kills.
        different: their tables that differ from the uninterrupted run's.
    """

    seconds: float
    units: int
    committed: list[int] = field(default_factory=list)
    unfinished: int = 0
    finished: int = 0
    different: list[str] = field(default_factory=list)


def start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `attrib ARGUMENTS` in its own process; its output goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_command, args=(list(arguments), log, dict(environment or {})))
    process.start()
    return process


def kill_and_resume(arguments: Sequence[str], folder: Path, *, kills: int, seed: int = 0) -> Kills:
    """Kill a command `kills` times; `--out` is added to its arguments."""
    chance, log = random.Random(seed), folder / "log.txt"
    whole = folder / "whole"
    _finish([*arguments, "--dry-run"], whole, log)  # this one waits for the imports
    begin = time.monotonic()
    _finish(arguments, whole, log)
    found = Kills(time.monotonic() - begin, len(_units(whole)))
    times = [path.stat().st_mtime for path in _units(whole)]
    pace = (max(times) - min(times)) / max(1, len(times) - 1)
    while True:
        out = folder / f"killed-{found.finished}"
        while len(found.committed) < kills:
            process = start([*arguments, "--out", str(out)], log)
            if chance.random() < ANY_MOMENT:
                process.join(chance.uniform(0, found.seconds))
            else:
                _wait_for_a_unit(process, out)
                process.join(chance.uniform(0, 2 * pace))
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == KILLED, log.read_text()
            found.committed.append(len(_units(out)))
            found.unfinished += bool(list(out.rglob(".*.tmp")))
        _finish(arguments, out, log)
        found.finished += 1
        found.different += [f"{out.name}/{name}" for name in different(whole, out)]
        if len(found.committed) >= kills:
            return found


def different(one: Path, other: Path) -> list[str]:
    """The tables that are not in both folders or not equal, bit for bit."""
    names = {path.name for out in (one, other) for path in out.glob("*.parquet")}
    return sorted(name for name in names if not _equal(one / name, other / name))


def _equal(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    a, b = (pq.read_table(path).replace_schema_metadata(None) for path in (one, other))
    return a.equals(b)


def _wait_for_a_unit(process: BaseProcess, out: Path) -> None:
    before = len(_units(out))
    while process.is_alive() and len(_units(out)) == before:
        time.sleep(0.002)


def _units(out: Path) -> list[Path]:
    return list((out / "parts").glob("*.rows.parquet"))


def _finish(arguments: Sequence[str], out: Path, log: Path) -> None:
    process = start([*arguments, "--out", str(out)], log)
    process.join()
    assert process.exitcode == 0, log.read_text()


def _command(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run `attrib ARGUMENTS` in this process."""
    os.environ.update(environment)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    sys.argv = ["attrib", *arguments]
    from attrib.cli import main

    main()


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Kill and resume a command.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="JSON file for the result")
    parser.add_argument("command", nargs="*", default=DEFAULT.split(), help=DEFAULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_and_resume(given.command, Path(folder), kills=given.kills, seed=given.seed)
    print(f"attrib {' '.join(given.command)}: {found.seconds:.1f} s, {found.units} units")
    print(f"{len(found.committed)} kills, {found.unfinished} of them while a file was written")
    print(f"units at a kill: {dict(sorted(Counter(found.committed).items()))}")
    print(f"{found.finished} runs finished after kills; tables that differ: {found.different}")
    if given.save:
        given.save.write_text(json.dumps({"command": given.command, **asdict(found)}) + "\n")
    sys.exit(bool(found.different))


if __name__ == "__main__":
    main()
