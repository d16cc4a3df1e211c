"""Check a folder of a benchmark: counts over valid rows, quality flags, overlaps, images."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attrib.data.benchmarks import SPLITS, Benchmark, benchmark_of, splits_in
from attrib.data.check_text import MAX_ITEMS_SHOWN, cell_text, listing, table_text
from attrib.data.easyedit import Row, read_rows
from attrib.data.images import MAX_PIXELS, BadImage, check_inside, open_inside
from attrib.data.overlap import KEYS, copied_columns, each_value, overlaps, repeats
from attrib.data.quality import QUALITY_FLAGS, is_yes_no
from attrib.data.rows import image_names
from attrib.data.samples import Quarantined
from attrib.errors import AttribError, RowError, SetupError
from attrib.progress import progress

COUNTED = ("src", "rephrase", "alt", "loc", "loc_ans", "m_loc_q", "m_loc_a")


@dataclass(frozen=True)
class CheckReport:
    """What `check` found, made of JSON types.

    Attributes:
        folder: what was checked.
        files: per split: rows, malformed rows, unique values, words, answers, flags, repeats.
        unreadable: per split whose file is not a list of rows: the reason.
        absent: splits without a file.
        totals: distinct images over all files.
        overlaps: per "eval in train" pair: how many rows share which fields.
        copies: columns that one file shares with the start of another.
        images: images needed, missing and broken; None if no image root was given.
    """

    folder: str
    files: Mapping[str, dict[str, Any]]
    unreadable: Mapping[str, str]
    absent: Sequence[str]
    totals: Mapping[str, int]
    overlaps: Mapping[str, dict[str, int]]
    copies: Sequence[str]
    images: Mapping[str, Any] | None

    @property
    def sound(self) -> bool:
        """Whether every file, row and image that was checked can be used."""
        bad = [file["malformed"] for file in self.files.values()]
        bad += [(self.images or {}).get(name) for name in ("missing", "broken")]
        return not (self.unreadable or any(bad))

    def to_markdown(self, shown: int = MAX_ITEMS_SHOWN) -> str:
        """Tables with one column per file; only the first `shown` items of long lists."""
        top = [
            f"- most frequent answers of {split}: "
            + ", ".join(f"{cell_text(a)} {n}" for a, n in common)
            for split, file in self.files.items()
            if (common := [(a, n) for a, n in file["answers"]["top"] if n > 1])
        ]
        parts = [
            f"# {cell_text(self.folder)}",
            table_text("", {split: _column(file) for split, file in self.files.items()}),
            "\n".join(top),
            f"Over all files: {self.totals['real images']} distinct real images, "
            f"{self.totals['image_rephrase']} rephrased ones.",
            *(f"{copy}." for copy in self.copies),
            table_text("shared rows", self.overlaps),
            f"Missing splits: {', '.join(self.absent)}." if self.absent else "",
            *(f"- unreadable: {cell_text(reason)}" for reason in self.unreadable.values()),
        ]
        for rows in (file["malformed"] for file in self.files.values() if file["malformed"]):
            head = f"Malformed rows of {rows[0]['file']}: {len(rows)}"
            items = [f"row {r['row']}: {r['field']}: {cell_text(r['reason'])}" for r in rows]
            parts.append(listing(head, items, shown))
        if (found := self.images) is not None:
            missing = [f"missing: {cell_text(name)}" for name in found["missing"]]
            broken = [f"broken: {cell_text(n)}: {cell_text(r)}" for n, r in found["broken"].items()]
            head = f"Images: {found['needed']} needed, {len(missing)} missing, {len(broken)} broken"
            parts.append(listing(listing(head, missing, shown), broken, shown))
        return "\n\n".join(part for part in parts if part) + "\n"


def check(
    folder: str | Path,
    image_root: str | Path | None = None,
    *,
    pixels: Literal["decode", "header"] = "decode",
    max_pixels: int = MAX_PIXELS,
) -> CheckReport:
    """Check the files of a folder in the layout of `attrib.data.benchmarks`.

    Args:
        folder: holds vqa/vqa_train.json and its siblings, or some of them.
        image_root: where the images are; without it they are not checked.
        pixels: "decode" finds every broken image; "header" is faster and misses truncated ones.
        max_pixels: larger images count as broken.

    Raises:
        AttribError: if the folder or the image root does not exist.
        SetupError: if the folder holds none of the files.
    """
    for path in filter(None, (folder, image_root)):
        if not Path(path).is_dir():
            raise AttribError(f"{path}: no such folder")
    if not (there := splits_in(Path(folder))):
        raise SetupError(f"{folder}: holds none of {', '.join(SPLITS.values())}")
    rows, files, unreadable = {}, {}, {}
    for split in there:
        try:
            rows[split], malformed = _validated(Path(folder) / SPLITS[split], benchmark_of(split))
            files[split] = _statistics(rows[split], malformed)
        except SetupError as error:
            unreadable[split] = str(error)
    everything = [row for table in rows.values() for row in table]
    try_image = check_inside if pixels == "header" else open_inside
    return CheckReport(
        folder=str(folder),
        files=files,
        unreadable=unreadable,
        absent=_absent(there),
        totals={
            "rows": len(everything),
            "real images": len(_real_images(everything)),
            "image_rephrase": len(_others(everything)),
        },
        overlaps=overlaps(rows),
        copies=copied_columns(rows),
        images=None
        if image_root is None
        else _check_images(everything, partial(try_image, image_root, max_pixels=max_pixels)),
    )


def _absent(there: Sequence[str]) -> list[str]:
    """Splits of the benchmarks that the folder has some of."""
    names = {split.partition("-")[0] for split in there}
    return [s for s in SPLITS if s.partition("-")[0] in names and s not in there]


def _validated(path: Path, benchmark: Benchmark) -> tuple[list[Row], list[Quarantined]]:
    good, bad = [], []
    for index, row in enumerate(read_rows(path)[0]):
        try:
            good.append(benchmark.validate(row, str(path), index))
        except RowError as error:
            bad.append(Quarantined.from_error(error))
    return good, bad


def _statistics(rows: Sequence[Row], malformed: Sequence[Quarantined]) -> dict[str, Any]:
    return {
        "rows": len(rows) + len(malformed),
        "malformed": [asdict(row) for row in malformed],
        "unique": {
            **{key: len(set().union(*each_value(rows, key))) for key in KEYS},
            "real images": len(_real_images(rows)),
        },
        "words": {name: _words(row[name] for row in rows) for name in COUNTED},
        "answers": {
            "yes/no": sum(map(is_yes_no, rows)),
            "digits": sum(row["alt"].strip().isdigit() for row in rows),
            "top": Counter(row["alt"] for row in rows).most_common(MAX_ITEMS_SHOWN),
        },
        "quality_flags": {name: sum(map(flag, rows)) for name, flag in QUALITY_FLAGS.items()},
        "repeats": repeats(rows),
    }


def _words(texts: Iterable[str]) -> dict[str, float]:
    """Numbers of words, which single spaces separate."""
    counts = [len(text.strip().split(" ")) for text in texts] or [0]
    return {"mean": sum(counts) / len(counts), "min": min(counts), "max": max(counts)}


def _real_images(rows: Iterable[Row]) -> set[str]:
    return {name for row in rows for _, name in image_names(row, ("image", "m_loc"))}


def _others(rows: Sequence[Row]) -> set[Any]:
    """The images of `image_rephrase`; some benchmarks have none."""
    return set().union(*each_value(rows, "image_rephrase")) - {(None,)}


def _check_images(rows: Iterable[Row], try_image: Callable[[str], object]) -> dict[str, Any]:
    names, refused = {name for row in rows for _, name in image_names(row)}, {}
    for name in progress(sorted(names), "images"):
        try:
            try_image(name)
        except BadImage as error:
            refused[name] = error.reason
    missing = [name for name, reason in refused.items() if reason.startswith("no such file")]
    broken = {name: reason for name, reason in refused.items() if name not in missing}
    return {"needed": len(names), "missing": missing, "broken": broken}


def _column(file: Mapping[str, Any]) -> dict[str, object]:
    return {
        "rows": file["rows"],
        "malformed rows": len(file["malformed"]),
        **{f"unique {name}": n for name, n in file["unique"].items()},
        **{
            f"words of {name}: mean (min-max)": f"{w['mean']:.1f} ({w['min']}-{w['max']})"
            for name, w in file["words"].items()
        },
        "answer yes or no": file["answers"]["yes/no"],
        "answer in digits": file["answers"]["digits"],
        **file["quality_flags"],
        **{f"repeats: {name}": n for name, n in file["repeats"].items()},
    }
