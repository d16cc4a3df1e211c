"""Load edit samples by name: the embedded scenes, or a folder of a benchmark's files.

All give rows with the same fields (`attrib.data.benchmarks`), of which `attrib.data.rows` makes
samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import get_args

from PIL import Image

from attrib.data.benchmarks import BENCHMARKS, SPLITS, Benchmark, benchmark_of, splits_in
from attrib.data.easyedit import FILES, IMAGES, clean_row, read_rows
from attrib.data.images import MAX_PIXELS, BadImage, check_inside, open_inside
from attrib.data.overlap import without_shared_locality
from attrib.data.prompt_styles import style_named
from attrib.data.rows import image_names, to_sample
from attrib.data.samples import EditData, EditSample, Quarantined
from attrib.errors import AttribError, RowError, SetupError
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
    """

    file: str
    ids: str
    rows: Sequence[object]
    digest: str
    benchmark: Benchmark
    open_image: Callable[[str], Image.Image]
    check_image: Callable[[str], None]
    other_splits: Callable[[], list[Sequence[object]]]


def load(
    name_or_folder: str | Path,
    split: str | None = None,
    *,
    image_root: str | Path | None = None,
    limit: int | None = None,
    disjoint: bool = False,
    clean: bool = False,
    need: Sequence[str] = ("image",),
    style: str | None = None,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> EditData:
    """Load the samples of one split. Rows that cannot be used are quarantined with the reason.

    Args:
        name_or_folder: "scenes-vqa", "scenes-captions", a folder in the layout of one of
            `attrib.data.benchmarks`, or a file of one.
        split: "train", "validation" or "test" of scenes; "vqa-train", "vlkeb-onehop", ... of a
            folder, as `attrib.data.benchmarks` lists them; of a file, which of them it is.
        image_root: where a folder's images are; by default the benchmark's subfolder.
        limit: read at most the first `limit` rows, usable or not, so that the same limit selects
            the same rows whatever images are there (`rows_read` in `provenance`).
        disjoint: leave out the visual-locality items that another split of the same task has too,
            matched on (m_loc, m_loc_q). The samples stay (`m_loc_removed` in `provenance`).
        clean: remove the artefacts that `clean_row` lists; False reads the files as published.
        need: the fields whose image must exist, with a sane header, for a row to be used.
            Attribution needs "image", editors "image", "image_rephrase" and "m_loc". Damage that
            only decoding finds is raised as a RowError when an image is accessed.
        style: the prompt style, one of `attrib.data.prompt_styles`; by default the benchmark's.
        max_pixels: larger images are refused.
        seed: of the scenes; a folder has none.

    Raises:
        AttribError: for a name, split, limit or image root that does not exist.
        SetupError: for a file that is missing, damaged or of another layout.
    """
    if unknown := set(need) - set(IMAGES):
        raise AttribError(f"need={sorted(unknown)}: no such image; choose from {list(IMAGES)}")
    if str(name_or_folder) in SCENES:
        if image_root is not None:
            raise AttribError(f"{name_or_folder} draws its images; leave the image root out")
        source = scenes_source(str(name_or_folder), split, seed, limit)
    else:
        source = folder_source(Path(name_or_folder), split, image_root, max_pixels)
    if not source.rows:
        raise AttribError(f"{source.file}: holds no rows")
    if limit is not None and limit < 1:
        raise AttribError(
            f"limit={limit} reads nothing of {source.file}; give 1 or more, or no limit"
        )
    rows = source.rows[:limit]
    samples, quarantined = _usable(rows, source, clean, need, style)
    before = sum(len(sample.visual_locality) for sample in samples)
    if disjoint:
        fields = [source.benchmark.named(name) for name in ("m_loc", "m_loc_q")]
        samples = without_shared_locality(samples, rows, source.other_splits(), fields)
    provenance = {
        "file": source.file,
        "sha256": source.digest,
        "image_root": None if image_root is None else str(image_root),
        "limit": limit,
        "rows_read": len(rows),
        "rows_quarantined": len(quarantined),
        "disjoint": disjoint,
        "m_loc_removed": before - sum(len(sample.visual_locality) for sample in samples),
        "clean": clean,
        "need": list(need),
        "style": style or source.benchmark.style,
        "seed": seed if str(name_or_folder) in SCENES else None,
    }
    return EditData(str(name_or_folder), split or "", samples, quarantined, provenance)


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
                f"{folder}: say what it holds, as a split: one of {', '.join(SPLITS)}"
            )
        path, folder = folder, folder.parent
    elif not folder.is_dir():
        raise AttribError(
            f"no data {str(folder)!r}; choose from {', '.join(SCENES)}, or give a folder with "
            f"{FILES['vqa-train']}, {FILES['caption-train']} or another benchmark's files in it"
        )
    else:
        found = f"{folder} has {', '.join(splits_in(folder)) or 'none of the splits'}"
        if split not in SPLITS:
            raise AttribError(f"no split {split!r}; {found}" if split else f"give a split: {found}")
        path = folder / SPLITS[split]
        if not path.is_file():
            raise SetupError(f"{path}: no such file; {found}")
    benchmark = benchmark_of(split)
    root = folder / benchmark.images if image_root is None else Path(image_root)
    if image_root is not None and not root.is_dir():
        raise AttribError(f"image root {image_root}: no such folder; give the one of the images")
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


def _usable(
    rows: Sequence[object],
    source: SplitSource,
    clean: bool,
    need: Sequence[str],
    style: str | None,
) -> tuple[list[EditSample], list[Quarantined]]:
    @cache  # many rows name the same image
    def refusal(name: str) -> BadImage | None:
        try:
            source.check_image(name)
        except BadImage as error:
            return error
        return None

    benchmark, asked = source.benchmark, style_named(style or source.benchmark.style)

    def sample(raw: object, index: int) -> EditSample:
        row = benchmark.validate(raw, source.file, index)
        for field, name in image_names(row, need):
            if error := refusal(name):
                place = benchmark.named(field)
                raise RowError(str(error), file=source.file, row=index, field=place)
        return to_sample(
            clean_row(row) if clean else row,
            f"{source.ids}/{index}",
            benchmark=benchmark,
            style=asked,
            file=source.file,
            index=index,
            open_image=source.open_image,
        )

    samples, quarantined = [], []
    for index, raw in enumerate(rows):
        try:
            samples.append(sample(raw, index))
        except RowError as error:
            quarantined.append(Quarantined.from_error(error))
    return samples, quarantined
