"""A `CheckReport` as Markdown that reads well as plain text too."""

from collections.abc import Iterable, Mapping
from typing import Any

from attrib.data.check import CheckReport

SHOWN = 5


def to_markdown(report: CheckReport, shown: int = SHOWN) -> str:
    """The report as tables, one column per file; of long lists only the first `shown` items."""
    parts = [f"# {_cell(report.folder)}"]
    if report.files:
        parts += [_files(report.files), _top_answers(report.files)]
    parts += [
        f"Over all files: {report.totals['real images']} distinct real images, "
        f"{report.totals['image_rephrase']} rephrased ones.",
        *(f"{copy}." for copy in report.copies),
    ]
    if report.overlaps:
        parts.append(_table("shared rows", report.overlaps))
    if report.absent:
        parts.append(f"Not there: {', '.join(report.absent)}.")
    parts += [f"- unreadable: {_cell(reason)}" for reason in report.unreadable.values()]
    parts += [_malformed(file["malformed"], shown) for file in report.files.values()]
    if report.images is not None:
        parts.append(_images(report.images, shown))
    return "\n\n".join(part for part in parts if part) + "\n"


def _files(files: Mapping[str, dict[str, Any]]) -> str:
    columns = {}
    for split, file in files.items():
        columns[split] = {
            "rows": file["rows"],
            "malformed rows": len(file["malformed"]),
            **{f"unique {name}": n for name, n in file["unique"].items()},
            **{
                f"words of {name}: mean (min-max)": f"{w['mean']:.1f} ({w['min']}-{w['max']})"
                for name, w in file["words"].items()
            },
            "answer yes or no": file["answers"]["yes/no"],
            "answer in digits": file["answers"]["digits"],
            **file["doubts"],
            **{f"repeated {name}": n for name, n in file["repeats"].items()},
        }
    return _table("", columns)


def _top_answers(files: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for split, file in files.items():
        top = [f"{_cell(answer)} {n}" for answer, n in file["answers"]["top"] if n > 1]
        lines += [f"- most frequent answers of {split}: {', '.join(top)}"] if top else []
    return "\n".join(lines)


def _table(corner: str, columns: Mapping[str, Mapping[str, object]]) -> str:
    """Rows are the union of the columns' keys, in their order."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [[corner, *columns]]
    lines += [[name, *(_value(c.get(name)) for c in columns.values())] for name in names]
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * width[0], *("-" * (w - 1) + ":" for w in width[1:])]
    return "\n".join(_line(line, width) for line in (lines[0], rule, *lines[1:]))


def _line(cells: Iterable[str], width: list[int]) -> str:
    first, *rest = (cell for cell in cells)
    padded = [first.ljust(width[0]), *(c.rjust(w) for c, w in zip(rest, width[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def _malformed(rows: list[dict[str, Any]], shown: int) -> str:
    if not rows:
        return ""
    lines = [f"Malformed rows of {rows[0]['file']}: {len(rows)}"]
    for row in rows[:shown]:
        lines.append(f"- row {row['row']}: {row['field']}: {_cell(row['reason'])}")
    return "\n".join(lines + _more(len(rows) - shown))


def _images(images: Mapping[str, Any], shown: int) -> str:
    missing, broken = images["missing"], images["broken"]
    lines = [f"Pictures: {images['needed']} needed, {len(missing)} missing, {len(broken)} broken"]
    lines += [f"- missing: {_cell(name)}" for name in missing[:shown]]
    lines += _more(len(missing) - shown)
    lines += [f"- broken: {_cell(n)}: {_cell(r)}" for n, r in list(broken.items())[:shown]]
    return "\n".join(lines + _more(len(broken) - shown))


def _more(left: int) -> list[str]:
    return [f"- and {left} more"] if left > 0 else []


def _value(value: object) -> str:
    return "-" if value is None else _cell(str(value))


def _cell(text: str) -> str:
    """One line that neither ends a table cell nor starts a tag."""
    line = " ".join(text.split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
