"""Load edit samples by name: the embedded scenes, a benchmark's files, or a user's own table.

All give rows with the same fields (`attrib.data.benchmarks`), of which `attrib.data.rows` makes
samples.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path

from attrib.data.easyedit import IMAGES, clean_row
from attrib.data.images import MAX_PIXELS, BadImage
from attrib.data.overlap import without_shared_locality
from attrib.data.own import own_source
from attrib.data.prompt_styles import style_named
from attrib.data.rows import image_names, to_sample
from attrib.data.samples import EditData, EditSample, Quarantined
from attrib.data.sources import SCENES, SplitSource, folder_source, scenes_source
from attrib.data.tables import is_table
from attrib.errors import AttribError, RowError


def load(
    name_or_folder: str | Path,
    split: str | None = None,
    *,
    image_root: str | Path | None = None,
    columns: str | Mapping[str, str] | None = None,
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
            `attrib.data.benchmarks`, or a file of one; or a table of your own: a CSV, TSV, JSONL,
            JSON or Parquet file, or a folder that `save_to_disk` of `datasets` wrote.
        split: "train", "validation" or "test" of scenes; "vqa-train", "vlkeb-onehop", ... of a
            folder, as `attrib.data.benchmarks` lists them; of a file, which of them it is. Of a
            table, the rows with this value in its column `split`; by default all.
        image_root: where the images are; by default the benchmark's subfolder, of a table the
            folder that it lies in.
        columns: which columns of a table hold what (`attrib.data.columns`), where their names do
            not say it: {"image": "file", "prompt": "question"}, or "image=file,prompt=question".
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
    elif is_table(name_or_folder, split):
        source = own_source(Path(name_or_folder), split, image_root, columns, max_pixels)
    else:
        source = folder_source(Path(name_or_folder), split, image_root, max_pixels)
    if columns is not None and source.columns is None:
        raise AttribError(f"{name_or_folder} has its own columns; leave columns out")
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
        **({} if source.columns is None else {"columns": dict(source.columns.by_field)}),
    }
    return EditData(str(name_or_folder), split or "", samples, quarantined, provenance)


def _usable(
    rows: Sequence[object],
    source: SplitSource,
    clean: bool,
    need: Sequence[str],
    style: str | None,
) -> tuple[list[EditSample], list[Quarantined]]:
    @cache  # many rows name the same image
    def refusal(name: Hashable) -> BadImage | None:
        try:
            source.check_image(name)
        except BadImage as error:
            return error
        return None

    benchmark, asked = source.benchmark, style_named(style or source.benchmark.style)

    def sample(raw: object, index: int, name: str) -> EditSample:
        row = benchmark.validate(raw, source.file, index)
        for field, image in image_names(row, need):
            if error := refusal(image):
                place = benchmark.place(field)
                raise RowError(str(error), file=source.file, row=index, field=place)
        return to_sample(
            clean_row(row) if clean else row,
            name,
            benchmark=benchmark,
            style=asked,
            file=source.file,
            index=index,
            open_image=source.open_image,
        )

    samples, quarantined = [], []
    for position, raw in enumerate(rows):
        try:
            samples.append(sample(raw, *source.label(position)))
        except RowError as error:
            quarantined.append(Quarantined.from_error(error))
    return samples, quarantined
