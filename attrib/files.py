"""Files and their origin: atomic writes, hashes, package versions, the embedded models.

An atomic write leaves a complete file, or none. Imports no torch.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from attrib.errors import SetupError

PACKAGES = (
    "attrib",
    "torch",
    "transformers",
    "tokenizers",
    "transformer-lens",
    "accelerate",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "matplotlib",
)
WEIGHTS = Path(__file__).parent / "zoo" / "weights"
ADDITIONS = "additions.safetensors"  # of a model whose language model is not in the package
ORIGIN = "origin.json"  # beside the files of a fetched language model
MAX_BYTES = 1 << 30  # hashing more takes seconds; a hub model has its commit


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


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        SetupError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{path} is damaged: it is no JSON ({error}); remove it") from error


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock among processes while the block runs; the system releases those of dead ones.

    Args:
        path: an empty file for the lock, which stays.
        shared: whether others may hold it, too, if theirs are shared.
        wait: whether to wait for it.

    Yields:
        Whether the lock is held; also True where there are no locks (Windows, some network disks).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield _lock(file, shared, wait)


def _lock(file: BinaryIO, shared: bool, wait: bool) -> bool:
    with suppress(ImportError, OSError):
        import fcntl

        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask


def versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {package: _version(package) for package in PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def embedded_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def language_model_folder() -> Path:
    """Where SmolLM2 is once it was fetched: below the user's cache folder (XDG_CACHE_HOME)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "attrib" / "smollm2"


def missing_part(folder: Path) -> str | None:
    """What a model's folder lacks until it is fetched, and the command; None if nothing."""
    if not (folder / ADDITIONS).is_file() or (language_model_folder() / ORIGIN).is_file():
        return None
    return (
        f"its language model SmolLM2 is not in {language_model_folder()}; fetch it once with: "
        "attrib models fetch smollm2"
    )


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(folder: str | Path) -> str | None:
    """One SHA-256 over a checkpoint's safetensors files; None if they are too large to hash."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files or sum(file.stat().st_size for file in files) > MAX_BYTES:
        return None
    digests = "".join(sha256(file) for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()
