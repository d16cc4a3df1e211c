"""Markdown of the reports about data: tables, and lists that are cut."""

from collections.abc import Mapping, Sequence

MAX_ITEMS_SHOWN = 5


def table_text(corner: str, columns: Mapping[str, Mapping[str, object]]) -> str:
    """A Markdown table; its rows are the union of the columns' keys, in their order."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [[corner, *columns]]
    cells += [[name, *(cell_text(c.get(name)) for c in columns.values())] for name in names]
    first, *rest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in rest)]
    lines = [
        [name.ljust(first), *(v.rjust(w) for v, w in zip(values, rest, strict=True))]
        for name, *values in (cells[0], rule, *cells[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else ""


def listing(head: str, items: Sequence[str], shown: int) -> str:
    """A line, then the first items of a list."""
    more = [f"- and {len(items) - shown} more"] if len(items) > shown else []
    return "\n".join([head, *(f"- {item}" for item in items[:shown]), *more])


def cell_text(value: object) -> str:
    """One line that neither ends a table cell nor starts a tag."""
    line = "-" if value is None else " ".join(str(value).split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
