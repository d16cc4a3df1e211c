"""`attrib compare` of evaluations: tables of all, and paired differences."""

import json
import shutil

import pandas as pd
import pytest


@pytest.fixture
def runs(run, tmp_path):
    """Folders of two evaluations of the same edits."""
    for editor in ("ft-l", "dualedit"):
        flags = ("--limit", 3, "--protocols", "paper", "--out", editor)
        assert run("evaluate", "--editor", editor, *flags)[0] == 0
    return tmp_path / "ft-l", tmp_path / "dualedit"


def test_editors_are_paired_by_edit(run, runs, tmp_path):
    code, out, err = run("compare", *runs)
    assert code == 0, err
    folder = tmp_path / "comparison"
    table = pd.read_csv(folder / "summary.csv").set_index(["editor", "metric"])["mean"]
    assert {editor for editor, _ in table.index} == {"unedited", "ft-l", "dualedit"}
    found = pd.read_csv(folder / "differences.csv")
    assert set(found["editor"]) == {"ft-l"} and set(found["other"]) == {"dualedit"}
    for row in found.itertuples():
        apart = table["ft-l", row.metric] - table["dualedit", row.metric]
        assert row.difference == pytest.approx(apart, abs=1e-9) and row.n == 3
    assert f"p by Holm over {len(found)} comparisons" in out and "taken as seeds" not in err
    assert json.loads((folder / "manifest.json").read_text())["command"] == "compare"


def test_one_name_in_two_folders_is_told(run, runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "again")
    code, _, err = run("compare", *runs, tmp_path / "again")
    assert code == 0 and "ft-l, ungated, is in" in err and "taken as seeds" in err
    table = pd.read_csv(tmp_path / "comparison" / "summary.csv")
    assert set(table.loc[table["editor"] == "ft-l", "runs"]) == {2}


def test_what_cannot_be_compared_is_refused(run, runs, tmp_path):
    (tmp_path / "other").mkdir()
    code, _, err = run("compare", runs[0], tmp_path / "other")
    assert code == 2 and "other: no scores.parquet of `attrib evaluate` there" in err
    code, _, err = run("compare", *runs, "--by", "layer")
    assert code == 2 and "--by: evaluations have one table" in err
    # The folder "ft-l" holds scores, no editor: the name still stands for the editor.
    flags = ("--limit", 2, "--protocols", "paper", "--out", "blip")
    code, _, err = run("evaluate", "--editor", "ft-l", "--model", "tiny-blip2", *flags)
    assert code == 0, err
    code, _, err = run("compare", runs[0], tmp_path / "blip")
    assert code == 2 and "scores of different model do not belong into one table" in err
