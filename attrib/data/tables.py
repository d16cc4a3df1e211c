"""Where rows come from: a folder in the E-VQA / E-IC layout, or the embedded scenes.

FOLDER/vqa/vqa_train.json               split vqa-train
FOLDER/vqa/vqa_eval.json                      vqa-eval
FOLDER/caption/caption_train_edit.json        caption-train
FOLDER/caption/caption_eval_edit.json         caption-eval
FOLDER/images/...                       the pictures, unless `image_root` says otherwise
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from attrib.data.images import check_inside, open_inside
from attrib.data.rows import Task
from attrib.errors import AttribError, SetupError

SCENES: dict[str, Task] = {"scenes-vqa": "vqa", "scenes-captions": "captions"}
SCENE_SPLITS = ("train", "validation", "test")
# SHA-256 of the embedded splits with seed 0, of which the first rows are made without the others.
DIGESTS = {
    ("scenes-vqa", "train"): "2da025e52fc193930b95baaf3d46c66d5d1a658e0b48d875c69929af8c832413",
    ("scenes-vqa", "validation"): (
        "f7aae408036e9a12e2a326450856d5673770c66a448ff5a5f72ceb71da6af2ef"
    ),
    ("scenes-vqa", "test"): "ff86e3ba98cdd1be4a210d3615ee5a8c90320f83651067e9ab22f038dff2b4de",
    ("scenes-captions", "train"): (
        "92d9b024d6d452495c7f4a14def6fa998b34829871bfa18d9a88c9b3ac03f557"
    ),
    ("scenes-captions", "validation"): (
        "bed8ca4c106328a2874b10ab76a5c154666d868b7f7c97f38507a0fbce2a954c"
    ),
    ("scenes-captions", "test"): (
        "11dd52fc95266ab8e2e86da7d3fb74f089c84d3a609e73f9d0856eac3805dfff"
    ),
}
FILES = {
    "vqa-train": "vqa/vqa_train.json",
    "vqa-validation": "vqa/vqa_validation.json",
    "vqa-eval": "vqa/vqa_eval.json",
    "caption-train": "caption/caption_train_edit.json",
    "caption-validation": "caption/caption_validation_edit.json",
    "caption-eval": "caption/caption_eval_edit.json",
}
# The split without which nobody can say what a split shares with the others.
SIBLING = {"train": "eval", "validation": "train", "eval": "train"}


@dataclass(frozen=True)
class Table:
    """The rows of one split, not looked at yet, and how to get at their pictures.

    Attributes:
        file: how to name the rows in a message.
        ids: what the samples' ids start with.
        rows: what the file holds, usable or not.
        digest: SHA-256 of the file.
        task: decides the prompts.
        opener: the RGB image of a name.
        check: raises BadImage for a name whose picture is not there or is not sane.
        others: reads the rows of the other splits of the same task.
    """

    file: str
    ids: str
    rows: Sequence[object]
    digest: str
    task: Task
    opener: Callable[[str], Image.Image]
    check: Callable[[str], None]
    others: Callable[[], list[Sequence[object]]]


def scenes_table(name: str, split: str, seed: int, limit: int | None = None) -> Table:
    """One split of the embedded scenes, or its first rows, with the digest of the whole split."""
    from attrib.data import scenes
    from attrib.data.scenes import edits as scene_edits

    if split not in SCENE_SPLITS:
        raise AttribError(f"{name} has no split {split!r}; choose from {', '.join(SCENE_SPLITS)}")
    task = SCENES[name]
    known = DIGESTS.get((name, split)) if seed == 0 else None
    rows = scene_edits.rows(task, split, seed, limit if known else None)
    others = [other for other in SCENE_SPLITS if other != split]
    return Table(
        file=f"{name} {split}",
        ids=f"{name}-{split}",
        rows=rows,
        digest=known or digest_of(rows),
        task=task,
        opener=scenes.open_image,
        check=lambda _name: None,  # A picture that is drawn is always there.
        others=lambda: [scene_edits.rows(task, other, seed) for other in others],
    )


def digest_of(rows: Sequence[object]) -> str:
    """SHA-256 of rows that no file holds."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def folder_table(folder: Path, split: str, image_root: str | Path | None, max_pixels: int) -> Table:
    """One split of a folder in the layout above.

    Raises:
        AttribError: for a split or an image root that there is not.
        SetupError: for a file that is missing or damaged.
    """
    there = ", ".join(splits_in(folder)) or "none of the splits"
    if split not in FILES:
        raise AttribError(f"no split {split!r}; {folder} has {there}")
    path = folder / FILES[split]
    if not path.is_file():
        raise SetupError(f"{path}: no such file; {folder} has {there}")
    root = folder / "images" if image_root is None else Path(image_root)
    if image_root is not None and not root.is_dir():
        raise AttribError(f"image root {image_root}: no such folder; give the one of the pictures")
    rows, digest = read_rows(path)
    return Table(
        file=str(path),
        ids=split,
        rows=rows,
        digest=digest,
        task=task_of(split),
        opener=partial(open_inside, root, max_pixels=max_pixels),
        check=partial(check_inside, root, max_pixels=max_pixels),
        others=partial(_other_splits, folder, split),
    )


def splits_in(folder: Path) -> list[str]:
    """The splits whose file is in a folder."""
    return [split for split, file in FILES.items() if (folder / file).is_file()]


def task_of(split: str) -> Task:
    """The task of a folder's split."""
    return "vqa" if split.startswith("vqa") else "captions"


def read_rows(path: Path) -> tuple[list[object], str]:
    """The rows of a JSON file, not looked at yet, and the SHA-256 of its bytes.

    Raises:
        SetupError: if it is missing, no JSON (with line and column), or no list of rows.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        rows = json.loads(raw)
    except json.JSONDecodeError as error:
        whole = raw.rstrip().endswith(b"]")
        what = "damaged there" if whole else "cut off: it does not end with ']'"
        raise SetupError(
            f"{path}: no valid JSON at line {error.lineno}, column {error.colno} "
            f"(character {error.pos}): {error.msg}; {what}; copy or download it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{path}: no JSON text ({error}); copy or download it again") from error
    if not isinstance(rows, list):
        keys = f" with the keys {list(rows)[:3]}" if isinstance(rows, dict) else ""
        kind = "an object" if isinstance(rows, dict) else "a single value"
        raise SetupError(f"{path}: holds {kind}{keys}; expected a list of rows")
    return rows, hashlib.sha256(raw).hexdigest()


def _other_splits(folder: Path, split: str) -> list[Sequence[object]]:
    task, part = split.split("-")
    needed = folder / FILES[f"{task}-{SIBLING[part]}"]
    if not needed.is_file():
        raise SetupError(
            f"{needed}: no such file; disjoint=True compares {split} with it: "
            "add it, or leave disjoint out"
        )
    others = [name for name in splits_in(folder) if name.startswith(task) and name != split]
    return [read_rows(folder / FILES[name])[0] for name in others]
