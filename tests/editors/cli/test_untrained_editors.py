"""Editors without a folder: those the package has trained, and fine-tuning."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from explored import tiny

import attrib
from attrib.cli.edit import TAUGHT
from attrib.errors import AttribError
from attrib.results import Result
from editors import DualEdit, load_editor
from editors.registry import PRETRAINED, editor_folder, pretrained

STAR = (
    "--image",
    Path(__file__).parents[3] / "docs" / "sample.png",
    "--prompt",
    "What color is the star? The answer is:",
)


def test_fine_tuning_needs_no_folder_and_the_control_question_is_known(run, tmp_path):
    before = tiny().generate(tiny().encode([None], [TAUGHT]), 4)
    assert before == ["bean stew"]
    code, out, _ = run(
        "edit", "--editor", "ft-l", *STAR, "--target", "green", "--save", "e.safetensors"
    )
    assert code == 0 and "before: blue\n  after:  green" in out
    assert f"unrelated: {TAUGHT}\n  before: bean stew\n  after:  bean stew" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.safetensors"]
    code, out, _ = run("edit", "--editor", "ft-l", *STAR, "--load", "e.safetensors")
    assert code == 0 and "after:  green" in out


def test_a_trained_editor_of_the_package_holds_and_does_not_leak(run):
    code, out, _ = run("edit", "--editor", "dualedit", *STAR, "--target", "red")
    assert code == 0 and "before: blue\n  after:  red" in out
    assert f"unrelated: {TAUGHT}\n  before: bean stew\n  after:  bean stew" in out
    code, out, err = run("attention", *STAR, "--edit", "dualedit", "--target", "red", "--out", "o")
    assert code == 0 and "gate: open" in out, err


@pytest.mark.parametrize(
    ("model", "editor"), [(path.parent.name, path.name) for path in sorted(PRETRAINED.glob("*/*"))]
)
def test_they_take_edits_of_the_test_split(run, tmp_path, model, editor):
    given = ("--model", model, "--editor", editor)
    code, _, err = run("evaluate", *given, "--limit", 8, "--protocols", "paper", "--out", "o")
    assert code == 0, err
    scores = pd.read_csv(tmp_path / "o" / "summary.csv").set_index(["editor", "metric"])["mean"]
    assert scores[editor, "rel"] >= 85 and scores["unedited", "rel"] <= 40
    assert scores[editor, "m_loc"] >= 90 and scores[editor, "t_loc"] == 100
    assert editor in pretrained(model)


def test_editors_without_a_folder_are_scored_and_told_apart(run):
    given = ("--limit", 2, "--protocols", "paper", "--out", "o")
    code, out, err = run("evaluate", "--editor", "ft-l", *given)
    assert code == 0 and "edits used: 2" in out, err
    assert run("evaluate", "--editor", "ft-l", *given)[0] == 0  # resumes
    code, _, err = run("evaluate", "--editor", "dualedit", *given)
    assert code == 3 and "made with other settings" in err


def test_more_edits_go_on_with_the_scores_that_are_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr("attrib.runs.shards.ROWS", 2)
    given = ("evaluate", "--editor", "ft-l", "--protocols", "paper", "--limit")
    for limit, out in ((2, "grown"), (5, "grown"), (5, "at-once")):
        code, _, err = run(*given, limit, "--out", out)
        assert code == 0, err
        assert ("1 of 3 shards exist already" in err) == ((limit, out) == (5, "grown"))
    tables = [Result.load(tmp_path / out / "scores.parquet") for out in ("grown", "at-once")]
    grown, whole = (t.frame[t.frame["protocol"] != "cost"].reset_index(drop=True) for t in tables)
    pd.testing.assert_frame_equal(grown, whole)
    assert tables[0].provenance["data"]["limit"] == 5 and tables[0].examples == 5
    code, _, err = run(*given, 4, "--out", "grown")
    assert code == 3 and "limit: 5 there, 4 now" in err


def test_only_the_model_that_an_editor_was_trained_for_gets_it():
    assert isinstance(load_editor("dualedit", tiny()), DualEdit)
    other = attrib.load("tiny-llava", verify=False)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    assert editor_folder("dualedit", other) is None
    with pytest.raises(AttribError, match="for tiny-llava it has to be trained first"):
        load_editor("dualedit", other)


@pytest.mark.parametrize(("name", "why"), [
    ("mend", "it has to be trained first: attrib train --editor mend"),
    ("ike", "it is made of edits as examples: attrib train --editor ike"),
])  # fmt: skip
def test_an_editor_that_needs_more_says_the_command(run, name, why):
    code, _, err = run("edit", "--editor", name, *STAR, "--target", "green")
    assert code == 2 and why in " ".join(err.split())
