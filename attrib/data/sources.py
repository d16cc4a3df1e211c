"""Where the rows of a split come from, and how their images are opened: scenes, or a benchmark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from attrib.data.benchmarks import BENCHMARKS, SPLITS, Benchmark, benchmark_of, splits_in
from attrib.data.columns import Columns
from attrib.data.easyedit import FILES, read_rows
from attrib.data.images import check_inside, open_inside
from attrib.data.tables import READERS
from attrib.errors import AttribError, SetupError
from attrib.vocabulary import SceneSplit

SCENES: dict[str, str] = {"scenes-vqa": "vqa", "scenes-captions": "caption"}
SCENE_SPLITS = get_args(SceneSplit)
# The split without which shared items of a split cannot be found.
SIBLING = {"train": ("eval", "test")}  # of the others: train


@dataclass(frozen=True)
class SplitSource:
    """The rows of one split, not validated, and how to open their images.

    Attributes:
        file: how messages name the source of the rows.
        ids: prefix of the samples' ids.
        rows: the content of the file, usable or not.
        digest: SHA-256 of the file.
        benchmark: its layout and prompt style.
        open_image: the RGB image of a name.
        check_image: raises BadImage for a name whose image is missing or not sane.
        other_splits: reads the rows of the other splits of the same task.
        labels: number and id of each row, where these are not its position and PREFIX/POSITION.
        columns: of a user's table.
        repeated_ids: rows of a table whose id another row has as well.
    """

    file: str
    ids: str
    rows: Sequence[object]
    digest: str
    benchmark: Benchmark
    open_image: Callable[[Any], Image.Image]
    check_image: Callable[[Any], None]
    other_splits: Callable[[], list[Sequence[object]]]
    labels: Sequence[tuple[int, str]] | None = None
    columns: Columns | None = None
    repeated_ids: int = 0

    def label(self, position: int) -> tuple[int, str]:
        """The number of a row in its file, and the id of its sample."""
        return (
            (position, f"{self.ids}/{position}") if self.labels is None else self.labels[position]
        )


def scenes_source(name: str, split: str | None, seed: int, limit: int | None = None) -> SplitSource:
    """One split of the embedded scenes, or its first rows, with the digest of the whole split."""
    from attrib.data.scenes import open_image
    from attrib.data.scenes.edits import DIGESTS, digest_of, edit_rows

    if split is None or split not in SCENE_SPLITS:
        what = f"has no split {split!r}; choose from" if split else "needs a split: one of"
        raise AttribError(f"{name} {what} {', '.join(SCENE_SPLITS)}")
    benchmark = BENCHMARKS[SCENES[name]]
    task = benchmark.task
    digest = DIGESTS[task, split] if seed == 0 else None
    rows = edit_rows(task, split, seed, max(limit, 1) if digest and limit is not None else None)
    return SplitSource(
        file=f"{name} {split}",
        ids=f"{name}-{split}",
        rows=rows,
        digest=digest or digest_of(rows),
        benchmark=benchmark,
        open_image=open_image,
        check_image=lambda _name: None,  # any scene can be drawn
        other_splits=lambda: [edit_rows(task, s, seed) for s in SCENE_SPLITS if s != split],
    )


def folder_source(
    folder: Path, split: str | None, image_root: str | Path | None, max_pixels: int
) -> SplitSource:
    """One split of a folder of E-VQA / E-IC files.

    Raises:
        AttribError: for a folder, a split or an image root that does not exist.
        SetupError: for a file that is missing or damaged.
    """
    if folder.is_file():
        if split not in SPLITS:
            raise AttribError(
                f"{folder}: say what it holds, as a split: one of {', '.join(SPLITS)}; tables "
                f"of your own end with {', '.join(READERS)}"
            )
        path, folder = folder, folder.parent
    elif not folder.is_dir():
        raise AttribError(
            f"no data {str(folder)!r}; choose from {', '.join(SCENES)}, or give a folder with "
            f"{FILES['vqa-train']}, {FILES['caption-train']} or another benchmark's files in it, "
            f"or a table of your own ({', '.join(READERS)})"
        )
    else:
        found = f"{folder} has {', '.join(splits_in(folder)) or 'none of the splits'}"
        if split not in SPLITS:
            raise AttribError(f"no split {split!r}; {found}" if split else f"give a split: {found}")
        path = folder / SPLITS[split]
        if not path.is_file():
            raise SetupError(f"{path}: no such file; {found}")
    benchmark = benchmark_of(split)
    root = image_root_of(folder / benchmark.images, image_root)
    rows, digest = read_rows(path)
    return SplitSource(
        file=str(path),
        ids=split,
        rows=rows,
        digest=digest,
        benchmark=benchmark,
        open_image=partial(open_inside, root, max_pixels=max_pixels),
        check_image=partial(check_inside, root, max_pixels=max_pixels),
        other_splits=partial(_other_splits, folder, split),
    )


def image_root_of(default: Path, image_root: str | Path | None) -> Path:
    """The folder of the images; raises AttribError if a given one does not exist."""
    if image_root is not None and not Path(image_root).is_dir():
        raise AttribError(f"image root {image_root}: no such folder; give the one of the images")
    return default if image_root is None else Path(image_root)


def _other_splits(folder: Path, split: str) -> list[Sequence[object]]:
    family, _, part = split.rpartition("-")
    siblings = [f"{family}-{name}" for name in SIBLING.get(part, ("train",))]
    known = [name for name in siblings if name in SPLITS]
    if not any((folder / SPLITS[name]).is_file() for name in known):
        raise SetupError(
            f"{folder / SPLITS[known[0]]}: no such file; disjoint=True compares {split} with it: "
            "add it, or leave disjoint out"
        )
    others = [n for n in splits_in(folder) if n.rpartition("-")[0] == family and n != split]
    return [read_rows(folder / SPLITS[name])[0] for name in others]
