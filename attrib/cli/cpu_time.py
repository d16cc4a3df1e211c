"""What the steps of a long job cost, kept in a file over interruptions."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrib.files import write_text


@contextmanager
def cpu_time(path: Path, what: str) -> Iterator[None]:
    """Add the CPU seconds that this process spends inside to what the file has under `what`."""
    began = time.process_time()
    try:
        yield
    finally:
        known = cpu_seconds(path)
        seconds = known.get(what, 0.0) + time.process_time() - began
        write_text(path, json.dumps({**known, what: round(seconds, 1)}, indent=1))


def cpu_seconds(path: Path) -> dict[str, float]:
    """The seconds that a file has, by what they were spent on; none if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
