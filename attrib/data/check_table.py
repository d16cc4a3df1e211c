"""Check a user's own table: its columns, counts, duplicates, and the rows that cannot be used."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attrib.data.check_text import MAX_ITEMS_SHOWN, cell_text, listing, table_text
from attrib.data.columns import Columns
from attrib.data.easyedit import Row
from attrib.data.images import MAX_PIXELS, BadImage
from attrib.data.own import FIELDS, own_source
from attrib.data.rows import image_names
from attrib.data.samples import Quarantined
from attrib.data.sources import SplitSource
from attrib.errors import RowError
from attrib.progress import progress

MAX_ROWS_SHOWN = 50


@dataclass(frozen=True)
class TableReport:
    """What `check_table` found.

    Attributes:
        table: the file or folder.
        columns: which column holds what.
        counts: numbers of rows, filled cells, distinct values and repeats.
        quarantined: the rows that cannot be used.
        answers: the most frequent targets that occur more than once.
    """

    table: str
    columns: Columns
    counts: Mapping[str, int]
    quarantined: Sequence[Quarantined]
    answers: Sequence[tuple[str, int]]

    @property
    def sound(self) -> bool:
        """Whether every row can be used."""
        return not self.quarantined

    def to_markdown(self, shown: int = MAX_ROWS_SHOWN) -> str:
        """The columns, a table of counts, and the first `shown` rows that cannot be used."""
        top = ", ".join(f"{cell_text(answer)} {n}" for answer, n in self.answers)
        rows = [f"row {q.row}: {q.field}: {cell_text(q.reason)}" for q in self.quarantined]
        parts = [
            f"# {cell_text(self.table)}",
            f"Columns: {cell_text(self.columns)}.",
            table_text("", {"number": self.counts}),
            f"- most frequent targets: {top}" if top else "",
            listing(f"Rows that cannot be used: {len(rows)}", rows, shown) if rows else "",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def check_table(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    columns: str | Mapping[str, str] | None = None,
    split: str | None = None,
    pixels: Literal["decode", "header"] = "decode",
    max_pixels: int = MAX_PIXELS,
) -> TableReport:
    """Check all rows of a table, with all their images.

    Args:
        path: what `attrib.data.load` takes as a table.
        image_root: where its images are; by default the folder that it lies in.
        columns: which columns hold what.
        split: check the rows of this split only.
        pixels: "decode" finds every broken image; "header" is faster and misses truncated ones.
        max_pixels: larger images count as broken.

    Raises:
        AttribError: The columns, the split or the image root do not fit.
        SetupError: A file is missing or cannot be read.
    """
    source = own_source(Path(path), split, image_root, columns, max_pixels)
    good, bad = [], []
    for position, raw in enumerate(progress(source.rows, "rows")):
        number, _ = source.label(position)
        try:
            good.append(_checked(raw, number, source, pixels))
        except RowError as error:
            bad.append(Quarantined.from_error(error))
    targets = Counter(row["alt"] for row in good if row["alt"])
    return TableReport(
        table=str(path),
        columns=source.columns or Columns({}, ()),
        counts=dict(_counts(source, good, len(bad))),
        quarantined=bad,
        answers=[pair for pair in targets.most_common(MAX_ITEMS_SHOWN) if pair[1] > 1],
    )


def _checked(raw: object, number: int, source: SplitSource, pixels: str) -> Row:
    """The row of eleven fields, whose images can all be used."""
    row = source.benchmark.validate(raw, source.file, number)
    for field, image in image_names(row):
        try:
            (source.check_image if pixels == "header" else source.open_image)(image)
        except BadImage as error:
            place = source.benchmark.place(field)
            raise RowError(str(error), file=source.file, row=number, field=place) from error
    return row


def _counts(source: SplitSource, rows: Sequence[Row], bad: int) -> Iterator[tuple[str, int]]:
    yield "rows", len(source.rows)
    yield "rows that cannot be used", bad
    for field, column in source.columns.by_field.items() if source.columns else ():
        values = [row[name] for row in rows if row.get(name := FIELDS.get(field, field))]
        if values:
            yield f"{column}: filled", len(values)
            yield f"{column}: distinct", len(set(values))
    yield "repeated ids", source.repeated_ids
    yield from _repeats(rows)


def _repeats(rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """How often a row, and a question about an image, occurs again."""
    asked: dict[tuple[Any, str], set[str]] = {}
    for row in rows:
        asked.setdefault((row["image"], row["src"]), set()).add(row["alt"])
    whole = {tuple(value for name, value in row.items() if name != "other") for row in rows}
    yield "repeated rows", len(rows) - len(whole)
    yield "repeated questions about an image", len(rows) - len(asked)
    yield "such questions with several targets", sum(len(targets) > 1 for targets in asked.values())
