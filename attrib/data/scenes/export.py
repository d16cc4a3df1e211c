"""Write the embedded scenes out as a folder of E-VQA and E-IC files with their pictures.

What is loaded from the folder is what is loaded by name: the rows are the same, and PNG keeps every
pixel. Every file is there whole or not at all; made again into the same folder, only what is
missing is written, and the row files come last.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attrib.data.rows import Task, image_names
from attrib.data.tables import FILES
from attrib.errors import AttribError
from attrib.files import atomic_write, write_text
from attrib.progress import progress

NOTE = "made.json"
IMAGES = "images"
# The scenes' test split takes the place of the benchmark's eval split.
PARTS = {"train": "train", "validation": "validation", "eval": "test"}
TASKS: dict[str, Task] = {"vqa": "vqa", "caption": "captions"}


@dataclass(frozen=True)
class ExportResult:
    """What `export_folder` did.

    Attributes:
        folder: where everything is.
        rows: per split, how many edits.
        written: pictures drawn this time.
        kept: pictures that were there.
    """

    folder: Path
    rows: Mapping[str, int]
    written: int
    kept: int


def export_folder(
    out: str | Path,
    *,
    seed: int = 0,
    rows: Callable[[Task, str, int], list[dict[str, Any]]] | None = None,
    open_image: Callable[[str], Image.Image] | None = None,
) -> ExportResult:
    """The folder `out`, holding every split of the scenes in the E-VQA and E-IC layout.

    Args:
        out: a new or empty folder, or one that this function made or began with the same seed.
        seed: of the scenes.
        rows: returns the rows of (task, split, seed); the embedded scenes if not given.
        open_image: returns the picture of a name; the embedded scenes' if not given.

    Raises:
        AttribError: if `out` holds something else.
    """
    if rows is None or open_image is None:
        from attrib.data import scenes
        from attrib.data.scenes import edits as scene_edits

        rows, open_image = rows or scene_edits.rows, open_image or scenes.open_image
    out = Path(out)
    tables = {
        f"{task}-{part}": rows(TASKS[task], PARTS[part], seed) for task in TASKS for part in PARTS
    }
    texts = {split: json.dumps(table, indent=1) + "\n" for split, table in tables.items()}
    _claim(out, seed, texts)
    names = {name for table in tables.values() for row in table for _, name in image_names(row)}
    missing = [name for name in sorted(names) if not (out / IMAGES / name).exists()]
    for name in progress(missing, "pictures"):
        with atomic_write(out / IMAGES / name) as file:
            open_image(name).save(file, format="PNG")
    for split, text in texts.items():
        write_text(out / FILES[split], text)
    counts = {split: len(table) for split, table in tables.items()}
    return ExportResult(out, counts, len(missing), len(names) - len(missing))


def _claim(out: Path, seed: int, texts: Mapping[str, str]) -> None:
    """Note in `out` what it is going to hold, or see that it is noted to hold just that."""
    digests = {
        FILES[split]: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()
    }
    note = {"made by": "attrib data make scenes", "seed": seed, "sha256": digests}
    path = out / NOTE
    if out.exists() and not out.is_dir():
        raise AttribError(f"{out}: a file; give a new or empty folder")
    if path.is_file():
        if path.read_text(encoding="utf-8") != _text(note):
            raise AttribError(
                f"{out}: was made with another seed or version; give another folder or remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise AttribError(f"{out}: holds other files; give a new or empty folder")
    else:
        write_text(path, _text(note))


def _text(note: Mapping[str, Any]) -> str:
    return json.dumps(note, indent=2) + "\n"
