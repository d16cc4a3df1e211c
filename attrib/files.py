"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well, and else is removed.

    Readers see the old file or the new one, never a part: the bytes go to a hidden neighbour
    (the same file system), are flushed to the disk, and the neighbour is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a result is as readable as any other file.
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """`path`, holding `text` as UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())
    return Path(path)


def _umask() -> int:
    mask = os.umask(0)  # The only portable way to read it is to set it.
    os.umask(mask)
    return mask
