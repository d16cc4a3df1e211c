"""The manifest of a run's folder: what its numbers are made of, and whether more may be added."""

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from attrib.errors import SetupError
from attrib.files import write_text
from attrib.runs.changes import changes

MANIFEST = "manifest.json"
LAYOUT = "attrib run 1"
# What may differ between those who work on one folder.
ALWAYS_FREE = frozenset(
    {
        "invocation",
        "examples",
        "quarantined",
        "model.name",
        "model.device",
        "data.rows_quarantined",
        "options.out",
        "options.batch_size",
        "options.device",
    }
)
VERSIONS = ("attrib", "torch", "transformers")  # other versions hardly change a number
SHOWN = 8


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that is neither new, empty nor a run's.

    Raises:
        SetupError: naming what is there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SetupError(f"{out}: a file, not a folder; give another --out")
    if (out / MANIFEST).is_file() and _read(out).get("layout") == LAYOUT:
        return
    if others := sorted(p.name for p in out.iterdir() if not p.name.startswith(".")):
        raise SetupError(
            f"{out}: the folder holds {others[0]} and no run of an analysis; give another --out"
        )


def refuse_other(out: Path, new: Mapping[str, Any], free: Set[str]) -> None:
    """Refuse a folder whose parts were made otherwise.

    Args:
        out: the run's folder.
        new: the manifest of what is to be done now.
        free: the entries that may differ, such as "options.batch_size".

    Raises:
        SetupError: naming each entry that differs, with both values.
    """
    if not (out / MANIFEST).is_file() or not any((out / "parts").glob("*.parquet")):
        return  # Nothing was computed yet, nothing can be mixed.
    if different := differences(_read(out), new, free):
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise SetupError(
            f"{out} was made with other settings: {'; '.join(different[:SHOWN])}{more}; give "
            "another --out, or the settings that are there"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], free: Set[str]) -> list[str]:
    """One line for each entry in which two manifests differ, without the free ones."""
    return changes(old, new, lambda key: _is_free(key, free))


def write(out: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest, whole or not at all."""
    text = json.dumps({"layout": LAYOUT, **manifest}, indent=2, allow_nan=False)
    return write_text(out / MANIFEST, text + "\n")


def stored(out: Path) -> dict[str, Any]:
    """The manifest that is there, or nothing."""
    return _read(out) if (out / MANIFEST).is_file() else {}


def _read(out: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _is_free(key: str, free: Set[str]) -> bool:
    head, _, name = key.partition(".")
    return key in free or key == "layout" or (head == "versions" and name not in VERSIONS)
