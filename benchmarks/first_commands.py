"""What the first commands of README cost: CPU seconds of each, with the start of Python.

    OMP_NUM_THREADS=1 python -m benchmarks.first_commands

The lines that have a time in README run in its order in one temporary folder, each in a process of
its own, for some rounds, each in a new folder. CPU seconds are those of the process in user and
system mode; other work on the machine lengthens them far less than wall seconds. Writes
`benchmarks/results/first-commands.json`; README states the medians.
"""

import argparse
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import RESULTS, save
from benchmarks.steps import Row, machine

ROOT = Path(__file__).parents[1]
# A row of README's table: the line, what it does, its time.
TIMED = re.compile(r"(?m)^\| `attrib ([^`]+)` .*\| ([\d.]+) s \|$")
NEEDED = "docs/sample.png"  # the lines name it


def timed_commands() -> dict[str, str]:
    """The arguments of `attrib` in README's lines with times, and the seconds stated there."""
    return dict(TIMED.findall((ROOT / "README.md").read_text(encoding="utf-8")))


def run_command(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run `attrib ARGUMENTS` in a folder.

    Returns:
        Wall and CPU seconds.

    Raises:
        RuntimeError: It failed; the message ends with what it printed.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "attrib", *arguments], cwd=folder, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"attrib {shlex.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return round(wall, 2), round(cpu, 2)


def run_all(commands: Sequence[str]) -> list[tuple[float, float]]:
    """Run commands in their order in a new folder: wall and CPU seconds of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / NEEDED).parent.mkdir()
        shutil.copy(ROOT / NEEDED, folder / NEEDED)
        return [run_command(shlex.split(one), folder) for one in commands]


def measured(commands: Sequence[str], rounds: int) -> list[Row]:
    """A row per command, with all rounds."""
    every = zip(*(run_all(commands) for _ in range(rounds)), strict=True)
    return [
        {
            "command": f"attrib {command}",
            "median CPU seconds": statistics.median(cpu for _, cpu in found),
            "CPU seconds": [cpu for _, cpu in found],
            "wall seconds": [wall for wall, _ in found],
        }
        for command, found in zip(commands, every, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the commands, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_commands")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "first-commands.json")
    options = parser.parse_args(arguments)
    rows = measured(list(timed_commands()), options.rounds)
    for row in rows:
        print(f"{row['median CPU seconds']:8.1f} s  {row['command']}")
    head = {
        "machine": machine(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "rounds": options.rounds,
    }  # fmt: skip
    save(options.out, head, {"rows": rows})


if __name__ == "__main__":
    main()
