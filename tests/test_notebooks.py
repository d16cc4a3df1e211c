"""Notebooks: the quickstart and one per figure, in step with their sources, and all of them run."""

import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from committed_figures import FOLDERS, committed, render
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure as Drawing

import attrib
from attrib.loading import load
from figures import DEFAULT, find, names
from figures.figure import Figure

jupytext = pytest.importorskip("jupytext", reason="un-skip with pip install attrib[dev]")
nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parent.parent / "notebooks"
SPEC = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(SPEC)
NOTEBOOKS = ("quickstart", *names())


def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def source(name):
    return jupytext.read(FOLDER / f"{name}.py")


def cells(book):
    return [(cell.cell_type, cell.source) for cell in book.cells]


def outputs(book):
    return [output for cell in book.cells for output in cell.get("outputs", ())]


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_every_figure_has_a_notebook_and_every_notebook_a_figure():
    for kind in ("py", "ipynb"):
        stems = {path.stem for path in FOLDER.glob(f"*.{kind}")} - {"execute"}
        assert stems == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_source_with_outputs(name):
    book = notebook(name)
    assert cells(book) == cells(source(name))
    assert not [output for output in outputs(book) if output.output_type == "error"]
    assert [output for output in outputs(book) if "image/png" in output.get("data", {})]
    shown = [output.get("text") or output["data"].get("text/plain", "") for output in outputs(book)]
    assert not re.search(r"/(home|root|tmp|work)/", "".join(shown))


@pytest.mark.parametrize("name", names())
def test_a_notebook_begins_with_the_claim_and_ends_with_the_verdict(name):
    book = notebook(name)
    first, parameters = book.cells[0], code(book)[0]
    assert " ".join(find(name).claim.split()) in " ".join(first.source.split())
    assert re.search(r'^MODEL = "tiny-', parameters.source, re.MULTILINE)
    assert "llava-hf/llava-1.5-7b-hf" in parameters.source
    printed = "".join(output.get("text", "") for output in code(book)[-1].outputs)
    assert re.search(r"(holds|does not hold|undecided) here: ", printed)


def run_cell(source, space, display):
    """Run a cell as Jupyter does: the value of a last expression is displayed."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), space) if last else None
    if value is not None:
        display(value)


@pytest.fixture
def cheap(monkeypatch):
    """The embedded model is loaded once; a figure of committed numbers is not drawn.

    Its drawing is that of tests/figures/test_figures.py, to the last byte.
    """

    def drawn_elsewhere(figure, measured, style=DEFAULT):
        known = [committed(figure.name, model).about for model in FOLDERS]
        is_committed = style is DEFAULT and measured.about in known
        return Drawing(figsize=(1, 1)) if is_committed else render(figure, measured, style)

    monkeypatch.setattr(Figure, "render", drawn_elsewhere)
    monkeypatch.setattr(attrib, "load", embedded)


@cache
def embedded(name):
    return load(name)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_displays_what_it_displayed(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    formatter, shown = DisplayFormatter(), []

    def display(value):
        shown.append(formatter.format(value)[0])

    space = {"display": display}
    with pd.option_context("display.width", 80):
        for cell in code(source(name)):
            run_cell(cell.source, space, display)
    before = [set(output["data"]) for output in outputs(notebook(name)) if "data" in output]
    # A notebook that was run beside a trained editor shows more at its start.
    assert any("image/png" in data for data in shown)
    assert [set(data) for data in shown] == before[-len(shown) :]


def test_outputs_are_kept_without_what_changes_from_run_to_run(tmp_path):
    cell = "import sys\nprint(1)\nprint(2, file=sys.stderr)\n3"
    path = tmp_path / "n.py"
    cells = [nbformat.v4.new_code_cell(cell) for _ in range(2)]
    kernel = {"kernelspec": notebook("quickstart").metadata["kernelspec"]}
    jupytext.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    SPEC.loader.exec_module(execute)
    with execute.kernel() as running:
        made, again = (execute.executed(path, running) for _ in range(2))
    assert made == again and [cell.execution_count for cell in code(made)] == [1, 2]
    kinds = [output.output_type for output in outputs(made)]
    assert kinds == ["stream", "execute_result"] * 2 and outputs(made)[0].text == "1\n"
