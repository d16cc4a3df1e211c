"""Notebooks: one per figure, in step with their sources, with outputs and without errors.

That they run is what `pytest --nbmake notebooks` shows, in `make test`.
"""

import re
from pathlib import Path

import pytest

from figures import find, names

jupytext = pytest.importorskip("jupytext", reason="un-skip with pip install attrib[dev]")
nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parent.parent / "notebooks"


def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def source(name):
    return jupytext.read(FOLDER / f"{name}.py")


def cells(book):
    return [(cell.cell_type, cell.source) for cell in book.cells]


def test_every_figure_has_a_notebook_and_every_notebook_a_figure():
    for kind in ("py", "ipynb"):
        assert {path.stem for path in FOLDER.glob(f"*.{kind}")} - {"execute"} == set(names())


@pytest.mark.parametrize("name", names())
def test_a_notebook_is_its_source_with_outputs(name):
    book = notebook(name)
    assert cells(book) == cells(source(name))
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("name", names())
def test_a_notebook_begins_with_the_claim_and_ends_with_the_verdict(name):
    book = notebook(name)
    first, parameters = book.cells[0], _code(book)[0]
    assert " ".join(find(name).claim.split()) in " ".join(first.source.split())
    assert re.search(r'^MODEL = "tiny-', parameters.source, re.MULTILINE)
    assert "llava-hf/llava-1.5-7b-hf" in parameters.source
    said = "".join(output.get("text", "") for output in _code(book)[-1].outputs)
    assert re.search(r"(holds|does not hold|cannot be told) here: ", said)


def _code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]
