"""The content of a report, independent of its form: sections of blocks."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from markupsafe import Markup

from attrib import plots
from attrib.data import Quarantined

LONGEST_TEXT = 400  # characters of a prompt or answer; the whole text is in the results
MOST_ROWS = 100  # of a table of samples or quarantined rows; the files have all of them
Kind = Literal[
    "text", "caption", "heading", "list", "terms", "table", "figures", "commands", "cards",
    "heatmaps", "details",
]  # fmt: skip


class Table(NamedTuple):
    """A table: the first cell of a row is its name; the rows named in `chosen` are marked."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[Any, Sequence[str]]]
    head: str = "layer"
    chosen: Collection[Any] = ()
    numeric: bool = True


class Figure(NamedTuple):
    """A figure and the numbers that it shows."""

    svg: Markup
    table: Table


class Figures(NamedTuple):
    """Figures side by side, with a caption."""

    figures: Sequence[Figure]
    caption: str


class Block(NamedTuple):
    """A piece of content.

    The type of `content` depends on `kind`: a string (text, caption, heading), strings (list),
    strings by name (terms), command lines by purpose (commands), a `Table`, `Figures`, cards, a
    `HeatmapViewer`, and for details a pair of a title and blocks.
    """

    kind: Kind
    content: Any


class Section(NamedTuple):
    """A part of a page, by the anchor `id`."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the document.
        headline: the result in one sentence.
        lead: what follows the headline.
        sections: the parts.
        badge: a warning above the headline.
    """

    title: str
    headline: str
    lead: Sequence[Block]
    sections: Sequence[Section]
    badge: str = ""


def figure(ax: Any, table: Table, prefix: str) -> Figure:
    """Axes as a figure of a page; `prefix` keeps the ids of its figures apart."""
    return Figure(Markup(plots.svg(ax, target="page", prefix=f"{prefix}-")), table)


def means_table(
    means: Any, column: str, labels: Mapping[str, str], title: str, chosen: Collection[int] = ()
) -> Table:
    """Layers down, groups across; cells are mean and interval.

    Args:
        means: a frame with the columns layer, `column`, mean, low and high.
        column: of the groups.
        labels: of the groups, by their value in `column`; others are left out.
        title: of the table.
        chosen: layers to mark.
    """
    cells = {(row["layer"], row[column]): _estimate(row) for row in means.to_dict("records")}
    layers = sorted({int(layer) for layer, group in cells if group in labels})
    rows = [(n, [cells.get((n, group), "none") for group in labels]) for n in layers]
    return Table(title, list(labels.values()), rows, chosen=chosen)


def quarantine_blocks(rows: Sequence[Quarantined], used: int) -> list[Block]:
    """The rows that could not be used."""
    if not rows:
        return [Block("text", "None.")]
    cells = [
        (shown(row.file), [str("" if row.row is None else row.row), row.field or "",
                           shown(row.reason)])
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    text = f"{len(rows)} of {len(rows) + used} rows could not be used and are not counted."
    table = Table("Quarantined rows", ["row", "field", "reason"], cells, "file", numeric=False)
    return [Block("text", text), Block("table", table), *more_rows(len(rows))]


def more_rows(number: int) -> list[Block]:
    """How many rows a table of at most `MOST_ROWS` leaves out."""
    hidden = number - MOST_ROWS
    return [Block("text", f"and {hidden} more")] if hidden > 0 else []


def provenance_table(provenance: Mapping[str, Any], title: str = "") -> Block:
    """Nested provenance as a table of dotted names; entries that are None are left out."""
    rows = [(name, [shown(value)]) for name, value in flat(provenance)]
    return Block("table", Table(title, ["value"], rows, "name", numeric=False))


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as pairs of a dotted name and a text."""
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items()
            for pair in flat(inner, f"{name}.{key}" if name else str(key))
        ]  # fmt: skip
    return [] if value is None else [(name, str(value))]


def shown(text: str) -> str:
    """Text of a dataset for display: of limited length, and `visible`."""
    return visible(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ...")


def visible(text: str) -> str:
    """Text with control and formatting characters (zero-width, right-to-left, ...) as codes."""
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)


def _estimate(row: Mapping[str, Any]) -> str:
    if not np.isfinite(row["mean"]):
        return "none"
    if not np.isfinite(row["low"]):
        return f"{row['mean']:.3g}"
    return f"{row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
