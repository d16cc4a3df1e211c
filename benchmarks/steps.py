"""Steps that are each run once, in a process of their own: time, peak memory, machine, resuming.

A finished step's row is in the file before the next one starts, so that a stopped benchmark goes on
where it was. A step that fails is listed with its error, and tried again by the next call.
"""

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from attrib.files import versions, write_text

Row = dict[str, Any]
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Steps:
    """Steps of one benchmark.

    Attributes:
        file: JSON with a row per step.
        head: What the rows of this call have in common: the model, the machine.
        run: Runs a step by its name and returns its row.
        command: Arguments of `python -m` that run one step (`--step NAME --row FILE` is added);
            None runs steps in this process.
        limit: Seconds after which a step's process is stopped, with all that it has started.
    """

    file: Path
    head: Row
    run: Callable[[str], Row]
    command: Sequence[str] | None = None
    limit: float | None = None

    def all(self, names: Sequence[str]) -> bool:
        """Run every step that has no row yet; returns whether all have succeeded."""
        for name in names:
            if name not in self.done:
                self._say(f"{name}: started")
                self._add(name, self._one(name))
        return set(names) <= set(self.done)

    @property
    def rows(self) -> dict[str, Row]:
        """Rows by step, failed ones included."""
        if not self.file.exists():
            return {}
        return {row["step"]: row for row in json.loads(self.file.read_text())["rows"]}

    @property
    def done(self) -> dict[str, Row]:
        """Rows of the steps that succeeded."""
        return {name: row for name, row in self.rows.items() if "failed" not in row}

    def _one(self, name: str) -> Row:
        if self.command is None:
            return measured(self.run, name)
        with tempfile.TemporaryDirectory() as folder:
            row = Path(folder) / "row.json"
            line = [sys.executable, "-m", *self.command, "--step", name, "--row", str(row)]
            # A group of its own: what the step has started stops with it.
            process = subprocess.Popen(line, start_new_session=True)
            try:
                code = process.wait(self.limit)
            except subprocess.TimeoutExpired:
                return {"failed": f"took more than {self.limit:.0f} s"}
            finally:
                if process.poll() is None:  # too slow, or this process is interrupted
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if not row.exists():
                return {"failed": f"its process ended with exit code {code}"}
            return json.loads(row.read_text())

    def _add(self, name: str, row: Row) -> None:
        made = {"date": date.today().isoformat(), "torch": versions()["torch"], **self.head}
        rows = {**self.rows, name: {"step": name, **row, **made}}
        document = {"rows": list(rows.values())}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(document, indent=1) + "\n")
        self._say(json.dumps({"step": name, **row}))

    @staticmethod
    def _say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def measured(run: Callable[[str], Row], name: str) -> Row:
    """The row of a step with its seconds and the peak memory of this process, or the error."""
    began = time.perf_counter()
    try:
        row = run(name)
    except Exception as error:  # whatever it is, the other steps go on
        first = next(iter(str(error).splitlines()), "")
        row = {"failed": f"{type(error).__name__}: {first}"}
    seconds = round(time.perf_counter() - began, 3)
    return {"seconds": seconds, "peak MiB": peak_bytes() / 2**20, **row}


def child(run: Callable[[str], Row], name: str, row: Path) -> None:
    """Run one step for the parent process."""
    row.write_text(json.dumps(measured(run, name)))


def peak_bytes() -> int:
    """High-water mark of this process's resident memory, mapped files included."""
    if STATUS.exists():  # the peak of `getrusage` includes that of the parent before `exec`
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine() -> Row:
    """CPU, cores and memory of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": (models or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
    }
