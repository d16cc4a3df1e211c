"""Edit samples by the name of their data: the embedded scenes, or a folder of E-VQA / E-IC files.

Both sources give rows of the same fields, and one parser (`rows.py`) reads them all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from attrib.data.images import MAX_PIXELS, BadImage
from attrib.data.rows import (
    IMAGES,
    cleaned,
    image_names,
    to_sample,
    well_formed,
)
from attrib.data.samples import EditData, EditSample, Quarantined
from attrib.data.tables import FILES, SCENES, Table, folder_table, scenes_table
from attrib.errors import AttribError, RowError


def load(
    name_or_folder: str | Path,
    split: str,
    *,
    image_root: str | Path | None = None,
    limit: int | None = None,
    disjoint: bool = False,
    clean: bool = False,
    need: Sequence[str] = ("image",),
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> EditData:
    """The samples of one split; rows that cannot be used are set aside by name.

    Args:
        name_or_folder: "scenes-vqa", "scenes-captions", or a folder laid out as `tables.py` says.
        split: "train", "validation" or "test" of scenes; "vqa-train", "vqa-eval",
            "caption-train", "caption-eval" (or "...-validation") of a folder.
        image_root: where a folder's pictures are; its subfolder `images` if not given.
        limit: read at most the first `limit` rows. It counts the rows read, usable or not, so
            the same limit means the same rows whatever pictures are there; `provenance` says
            how many there were (`rows_read`).
        disjoint: leave out the visual-locality items that also stand in another split of the
            same task, matched on (m_loc, m_loc_q). The samples stay; `provenance` says how
            many items went (`m_loc_removed`).
        clean: strip the quirks that `rows.cleaned` names; False reads the files as published.
        need: the fields whose picture must be there, with a sane header, for a row to be used.
            Attribution needs "image", editors "image", "image_rephrase" and "m_loc". What only
            decoding shows is raised when an image is touched, as a RowError.
        max_pixels: larger pictures are refused.
        seed: of the scenes; a folder has none.

    Raises:
        AttribError: for a name, split, limit or image root that there is not.
        SetupError: for a file that is missing, damaged or of another layout.
    """
    if unknown := set(need) - set(IMAGES):
        raise AttribError(f"need={sorted(unknown)}: no such picture; choose from {list(IMAGES)}")
    table = _table(name_or_folder, split, image_root, max_pixels, seed, limit)
    rows = _first(table.rows, limit, table.file)
    samples, quarantined = _usable(rows, table, clean, need)
    before = sum(len(sample.visual_locality) for sample in samples)
    if disjoint:
        samples = _without_shared(samples, rows, table.others())
    provenance = {
        "file": table.file,
        "sha256": table.digest,
        "image_root": None if image_root is None else str(image_root),
        "limit": limit,
        "rows_read": len(rows),
        "rows_quarantined": len(quarantined),
        "disjoint": disjoint,
        "m_loc_removed": before - sum(len(sample.visual_locality) for sample in samples),
        "clean": clean,
        "need": list(need),
        "seed": seed if str(name_or_folder) in SCENES else None,
    }
    return EditData(str(name_or_folder), split, samples, quarantined, provenance)


def _table(
    name: str | Path,
    split: str,
    image_root: str | Path | None,
    max_pixels: int,
    seed: int,
    limit: int | None,
) -> Table:
    if str(name) in SCENES:
        if image_root is not None:
            raise AttribError(f"{name} draws its pictures; leave the image root out")
        return scenes_table(str(name), split, seed, limit if limit is None else max(limit, 1))
    if not Path(name).is_dir():
        raise AttribError(
            f"no data {str(name)!r}; choose from {', '.join(SCENES)}, or give a folder with "
            f"{FILES['vqa-train']} or {FILES['caption-train']} in it"
        )
    return folder_table(Path(name), split, image_root, max_pixels)


def _first(rows: Sequence[object], limit: int | None, file: str) -> Sequence[object]:
    if not rows:
        raise AttribError(f"{file}: holds no rows")
    if limit is not None and limit < 1:
        raise AttribError(f"limit={limit} reads nothing of {file}; give 1 or more, or no limit")
    return rows[:limit]


def _usable(
    rows: Sequence[object], table: Table, clean: bool, need: Sequence[str]
) -> tuple[list[EditSample], list[Quarantined]]:
    @cache  # Many rows ask for the same picture.
    def refusal(name: str) -> BadImage | None:
        try:
            table.check(name)
        except BadImage as error:
            return error
        return None

    def sample(raw: object, index: int) -> EditSample:
        row = well_formed(raw, table.file, index)
        for field, name in image_names(row, need):
            if error := refusal(name):
                raise RowError(str(error), file=table.file, row=index, field=field)
        return to_sample(
            cleaned(row) if clean else row,
            f"{table.ids}/{index}",
            task=table.task,
            file=table.file,
            index=index,
            opener=table.opener,
        )

    samples, quarantined = [], []
    for index, raw in enumerate(rows):
        try:
            samples.append(sample(raw, index))
        except RowError as error:
            quarantined.append(Quarantined.from_error(error))
    return samples, quarantined


def _without_shared(
    samples: list[EditSample], rows: Sequence[object], others: list[Sequence[object]]
) -> list[EditSample]:
    """The samples, without the visual-locality items that stand in other splits."""
    elsewhere = {_m_loc(row) for other in others for row in other}
    return [
        replace(sample, visual_locality=[])
        if _m_loc(rows[sample.meta["row"]]) in elsewhere
        else sample
        for sample in samples
    ]


def _m_loc(row: object) -> tuple[str, str]:
    row = row if isinstance(row, dict) else {}
    return str(row.get("m_loc")), str(row.get("m_loc_q"))
