"""Tables of the pages and committed tables, for the tests that compare them."""

import csv
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, EDITORS, LAYERS, BENCHMARKS = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("results", "editors", "layer-selection", "benchmarks")
)
FIVE = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
SEVEN = (*FIVE, "same_image", "same_question_other_image")


def rows(name):
    """The rows of a committed table."""
    with (ROOT / "figures" / "tables" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(name, protocol):
    """Mean and spread in per cent by editor, gate and metric."""
    return {
        (r["editor"], r["gate"], r["metric"]): (float(r["mean"]), r["spread"])
        for r in rows(name)
        if r["protocol"] == protocol
    }


def cells(name, **wanted):
    """Scores of a grid in per cent: (text, visual) -> by seed."""
    found = {}
    for row in rows(name):
        if all(row.get(k, v) == v for k, v in wanted.items()) and row["text"] and row["visual"]:
            place = tuple(int(float(row[m])) for m in ("text", "visual"))
            value = row["score"] if "score" in row else row["value"]
            found.setdefault(place, {})[row["seed"]] = 100 * float(value)
    return found


def shown(page, head):
    """The body of the table whose head line begins so, row by row; cells without bold."""
    lines = page[page.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip(" *`") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def equal(cell, value):
    """A cell is a number at its own precision; rounding may be that of a decimal."""
    number = cell.replace(",", "")
    digits = len(number.partition(".")[2])
    return abs(float(number) - value) <= 0.5 * 10**-digits + 1e-6
