"""A run's tables leave its folder unchanged but for text that a spreadsheet would evaluate."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import picture

from attrib.errors import AttribError, SetupError
from attrib.results import Result
from attrib.runs.export import export, inert_text, run_tables

DOCS = Path(__file__).parents[3] / "docs" / "own-data.md"
ANALYSES = {
    "contributions": ["answers"],
    "attention": [],
    "sweep": [],
    "patching": [],
    "heatmap": ["grids"],
    "faithfulness": ["all_layers"],
    "deletion": ["curves"],
    "gate": ["separation"],
}  # with their further tables
CELLS = ["=1+1", "+a", "-", "@x", "\tx", "plain", "a=b", ""]


@pytest.fixture
def finished(tmp_path):
    """The folder of a run whose main table has text like formulas, and negative numbers."""
    folder = tmp_path / "run"
    numbers = [-1.5, 2.0, -3.0, float("nan"), 0.0, 1.0, 1.0, 1.0]
    frame = pd.DataFrame({"example": [f"r/{i}" for i in range(8)], "value": numbers, "key": CELLS})
    Result("contributions", frame, {}).save(folder / "result.parquet")
    (folder / "manifest.json").write_text(json.dumps({"command": "contributions"}))
    (folder / "quarantined.csv").write_text("file,row,field,reason\nq.csv,3,image,'=no\n")
    return folder


def test_text_like_a_formula_gets_an_apostrophe_and_numbers_stay(finished):
    files = export(finished, "csv")
    assert [file.name for file in files] == ["contributions.csv", "quarantined.csv"]
    assert files[0].parent == finished.parent / "run-csv"
    table = pd.read_csv(files[0], keep_default_na=False)
    assert table["key"].tolist() == ["'=1+1", "'+a", "'-", "'@x", "'\tx", "plain", "a=b", ""]
    assert table["value"].tolist() == ["-1.5", "2.0", "-3.0", "", "0.0", "1.0", "1.0", "1.0"]
    assert files[1].read_text() == (finished / "quarantined.csv").read_text()  # not quoted twice
    assert inert_text(-1) == -1 and inert_text(None) is None


def test_parquet_keeps_everything(finished, tmp_path):
    file, _ = export(finished, "parquet", tmp_path / "there")
    kept = pd.read_parquet(file)
    pd.testing.assert_frame_equal(kept, run_tables(finished)["contributions"])
    assert kept["key"].tolist() == CELLS


def test_a_workbook_has_a_sheet_per_table(finished):
    openpyxl = pytest.importorskip("openpyxl")
    (file,) = export(finished, "xlsx")
    book = openpyxl.load_workbook(file)
    assert book.sheetnames == ["contributions", "quarantined"]
    rows = list(book["contributions"].iter_rows(values_only=True))
    assert rows[0] == ("example", "value", "key") and rows[1] == ("r/0", -1.5, "'=1+1")
    assert rows[4][1] is None


def test_without_openpyxl_the_command_to_install_it_is_given(run, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SetupError, match=r"pip install 'attrib\[xlsx\]'; or give --to csv"):
        export(finished, "xlsx")
    code, out, _ = run("export", finished, "--to", "parquet", "--out", "o")
    assert code == 0 and out.split() == ["o/contributions.parquet", "o/quarantined.parquet"]


def test_what_is_no_finished_run_is_refused(tmp_path, finished):
    with pytest.raises(AttribError, match="holds no table: no run's folder"):
        export(tmp_path / "nowhere", "csv")
    (finished / "result.parquet").unlink()
    with pytest.raises(AttribError, match="has not finished; its command continues it"):
        export(finished, "csv")
    (finished / "result.parquet").write_bytes(b"PAR1")
    with pytest.raises(SetupError, match=r"result\.parquet: the table is damaged"):
        export(finished, "csv")
    (tmp_path / "file").touch()
    (finished / "result.parquet").unlink()
    (finished / "summary.csv").write_text("a\n1\n")
    with pytest.raises(AttribError, match="csv makes a file per table: give a folder"):
        export(finished, "csv", tmp_path / "file")


def listed_columns():
    """The columns of each table on the page; names in parentheses explain a column."""
    rows = re.findall(r"(?m)^\| `(\w+)`[^|]* \| (`.*`[^|]*) \|$", DOCS.read_text())
    tables = {name: re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", text)) for name, text in rows}
    return {name: columns for name, columns in tables.items() if len(columns) > 2}


@pytest.mark.usefixtures("unrendered")
def test_the_columns_are_those_that_the_page_lists(run, tmp_path):
    listed = listed_columns()
    for command in ANALYSES:
        assert run(command, "--data", "scenes-vqa", "--limit", 1, "--out", command)[0] == 0
        tables = run_tables(tmp_path / command)
        assert set(tables) == {command, *ANALYSES[command]}
        for name, table in tables.items():
            assert list(table.columns) == listed[name], name
    picture().save(tmp_path / "0.png")
    (tmp_path / "q.csv").write_text("image,prompt,target\n0.png,What is it?,a\n9.png,What?,b\n")
    run("attention", "--data", "q.csv", "--out", "c")
    assert list(run_tables(tmp_path / "c")["quarantined"].columns) == listed["quarantined"]
    assert {"scores", "summary", "costs", "grid"} < set(listed)  # evaluation has its own tests
