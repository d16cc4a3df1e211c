"""Atomic writes: a file exists complete, or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block succeeds and is removed otherwise.

    Readers see the old file or the new one, never a part: the bytes go to a hidden file in the same
    folder, are flushed to disk, and the file is renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates files with mode 600; results get the usual permissions.
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # A full disk does not say where; an error without a number keeps its own message.
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically; the path."""
    with atomic_write(path) as file:
        file.write(text.encode())
    return Path(path)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
