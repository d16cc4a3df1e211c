"""Notebooks: the quickstart and one per figure, in step with their sources, and all of them run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from figures import find, names

jupytext = pytest.importorskip("jupytext", reason="un-skip with pip install attrib[dev]")
nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parent.parent / "notebooks"
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


@pytest.mark.timeout(900)  # a minute of work, for a machine that is busy
def test_all_notebooks_run():
    command = [sys.executable, str(FOLDER / "execute.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}.ipynb" for name in sorted(NOTEBOOKS)]
