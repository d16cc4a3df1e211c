"""docs/equations.md: all equations and figures are listed, and what is listed exists and agrees."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from test_readme import check_command

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "equations.md"
# The numbered equations and figures of the papers.
NUMBERS = {"VisEdit": {"Eq": 19, "Fig": 9}, "DualEdit": {"Eq": 5, "Fig": 5}}
PART = r"(Eq|Fig|Table|App)\w*\.? ([\dA][\d, -]*(?:and \d+)?)"
CITED = re.compile(rf"(VisEdit|DualEdit)(?:'s)?((?:[ ,;]*(?:and )?{PART})+)")


def rows():
    """Each row of the tables: paper, kind, numbers, function, command, test."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        paper = section.split("\n")[0]
        for line in re.findall(r"(?m)^\| ((?:Eq|Fig).*) \|$", section):
            reference, _, function, command, test = (cell.strip(" `") for cell in line.split("|"))
            kind, numbers = re.fullmatch(r"(Eq|Fig)s?\. ([\d-]+)", reference).groups()
            yield paper, kind, expand(numbers), function, command, test


def expand(text):
    """The numbers of "6-8", "1, 5 and 6"."""
    found = []
    for part in re.split(r",| and ", text):
        ends = [int(number) for number in part.split("-") if number.strip()]
        found += range(ends[0], ends[-1] + 1) if ends else []
    return found


def resolve(name):
    """The module, class or function of a dotted name."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        home, _, last = name.rpartition(".")
        return getattr(resolve(home), last)


def cited(text, paper, kind):
    """The numbers that a docstring cites."""
    parts = [parts for who, parts, *_ in CITED.findall(" ".join(text.split())) if who == paper]
    found = [numbers for part in parts for what, numbers in re.findall(PART, part) if what == kind]
    return {n for numbers in found for n in expand(numbers)}


ROWS = list(rows())


@pytest.mark.parametrize("paper", NUMBERS)
@pytest.mark.parametrize("kind", ["Eq", "Fig"])
def test_every_equation_and_every_figure_is_listed_once(paper, kind):
    listed = [n for who, what, numbers, *_ in ROWS if (who, what) == (paper, kind) for n in numbers]
    assert sorted(listed) == list(range(1, NUMBERS[paper][kind] + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{row[2][0]}")
def test_what_is_listed_exists_and_cites_the_equation(row):
    paper, kind, numbers, function, command, test = row
    found = resolve(function)
    home = import_module(getattr(found, "__module__", function))
    assert set(numbers) <= cited(f"{found.__doc__} {home.__doc__}", paper, kind), function
    if command:
        check_command(command)
    file, name = test.split("::")
    assert re.search(rf"(?m)^def {name}\(", (ROOT / file).read_text())


@cache
def docstrings():
    """All docstrings of the packages, with their places."""
    found = []
    for package in ("attrib", "editors", "figures"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node) or ""
                    found.append((f"{file.relative_to(ROOT)}: {getattr(node, 'name', '')}", text))
    return found


@pytest.mark.parametrize("paper", NUMBERS)
@pytest.mark.parametrize("kind", ["Eq", "Fig"])
def test_docstrings_cite_no_equation_or_figure_that_the_paper_lacks(paper, kind):
    for place, text in docstrings():
        assert cited(text, paper, kind) <= set(range(1, NUMBERS[paper][kind] + 1)), place
