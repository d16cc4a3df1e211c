"""What this installation holds: package versions, embedded models, hashes. Imports no torch."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
MAX_BYTES = 1 << 30  # hashing more takes seconds; a hub model has its commit


def versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def embedded_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


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
