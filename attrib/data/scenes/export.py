"""Write the embedded scenes as a folder of E-VQA and E-IC files with their images.

Loading the folder gives the same samples as loading the scenes by name: the rows are equal and PNG
is lossless. Every file is written atomically. A second export into the same folder writes only what
is missing; the row files come last.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attrib.data.easyedit import FILES, Task
from attrib.data.rows import image_names
from attrib.data.scenes import open_image
from attrib.data.scenes.edits import edit_rows
from attrib.errors import AttribError
from attrib.files import atomic_write, write_text
from attrib.progress import progress

NOTE = "made.json"
IMAGES = "images"
PARTS = {"train": "train", "validation": "validation", "eval": "test"}  # the files' part -> ours
TASKS: dict[str, Task] = {"vqa": "vqa", "caption": "captions"}


@dataclass(frozen=True)
class ExportResult:
    """What `export_folder` did.

    Attributes:
        folder: where the files are.
        rows: number of edits per split.
        written: images drawn this time.
        kept: images that existed.
    """

    folder: Path
    rows: Mapping[str, int]
    written: int
    kept: int


def export_folder(out: str | Path, *, seed: int = 0, limit: int | None = None) -> ExportResult:
    """Write every split of the scenes to the folder `out` in the E-VQA and E-IC layout.

    Args:
        out: a new or empty folder, or one of an earlier export with the same seed.
        seed: of the scenes.
        limit: edits per split; by default all, which are some 22,000 images.

    Raises:
        AttribError: if `out` holds something else.
    """
    out = Path(out)
    tables = {
        f"{task}-{part}": edit_rows(TASKS[task], PARTS[part], seed)[:limit]
        for task in TASKS
        for part in PARTS
    }
    texts = {split: json.dumps(table, indent=1) + "\n" for split, table in tables.items()}
    _claim(out, seed, texts)
    names = {name for table in tables.values() for row in table for _, name in image_names(row)}
    missing = [name for name in sorted(names) if not (out / IMAGES / name).exists()]
    for name in progress(missing, "images"):
        with atomic_write(out / IMAGES / name) as file:
            open_image(name).save(file, format="PNG")
    for split, text in texts.items():
        write_text(out / FILES[split], text)
    counts = {split: len(table) for split, table in tables.items()}
    return ExportResult(out, counts, len(missing), len(names) - len(missing))


def _claim(out: Path, seed: int, texts: Mapping[str, str]) -> None:
    """Write a note of the content to `out`, or compare with the note of an earlier export."""
    digests = {
        FILES[split]: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()
    }
    note = {"made by": "attrib data make scenes", "seed": seed, "sha256": digests}
    text, path = json.dumps(note, indent=2) + "\n", out / NOTE
    if out.exists() and not out.is_dir():
        raise AttribError(f"{out}: a file; give a new or empty folder")
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise AttribError(
                f"{out}: was made with another seed, limit or version; give another folder or "
                "remove it"
            )
    elif out.exists() and any(out.iterdir()):
        raise AttribError(f"{out}: holds other files; give a new or empty folder")
    else:
        write_text(path, text)
