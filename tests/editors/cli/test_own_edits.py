"""Ten questions of one's own in a CSV, two of them broken: analysed, edited and scored."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from attrib.data import load, sample_image
from editors.evaluation.left_out import left_out

BAD = ("questions.csv: row 3: picture: 'no-such.png': no such file", 
       "questions.csv: row 7: question: is empty")  # fmt: skip
ASKED = ("What color is the star?", "Where is the heart?", "What shape is red?")


def rows():
    for i in range(10):
        question = "" if i == 7 else f"{ASKED[i % 3]} The answer is:"
        rephrase = f"Now: {question}" if i < 5 else ""
        yield ("no-such.png" if i == 3 else "scene.png", question, "green", rephrase)


@pytest.fixture
def table(tmp_path):
    sample_image().save(tmp_path / "scene.png")
    with (tmp_path / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("picture", "question", "answer", "rephrase"), *rows()])
    return "questions.csv"


@pytest.mark.usefixtures("unrendered")
def test_ten_questions_of_which_two_are_broken(run, table, tmp_path):
    said = []

    def done(*arguments, code=0):
        found, out, err = run(*arguments)
        assert found == code, err
        assert all(bad in out + err for bad in BAD), out + err
        said.append(out)
        return out

    done("explore", "--data", table, "--row", 1)
    assert "Where is the heart?" in Path("explore.html").read_text()
    for command in ("contributions", "heatmap"):
        assert "samples used: 8, rows quarantined: 2" in done(
            command, "--data", table, "--out", command
        )
        listed = pd.read_csv(tmp_path / command / "quarantined.csv")
        assert listed[["row", "field"]].values.tolist() == [[3, "picture"], [7, "question"]]
    done("train", "--editor", "ike", "--data", table, "--out", "e")
    scored = ("evaluate", "--editor", "e", "--data", table, "--protocols", "exact", "--out", "s")
    out = done(*scored)
    assert "edits used: 8, rows quarantined: 2" in out
    assert ("no image_rephrase column: V-Gen is left out; no loc column: T-Loc is left out; "
            "no m_loc_q column: M-Loc is left out; Avg needs all five") in out  # fmt: skip
    summary = pd.read_csv("s/summary.csv")
    exact = summary[(summary["protocol"] == "exact") & (summary["editor"] == "ike")]
    counts = dict(zip(exact["metric"], exact["n"], strict=True))
    assert counts == {"rel": 8, "t_gen": 4} and exact["mean"].notna().all()
    out = done("edit", "--editor", "e", "--data", table, "--limit", 9, code=4)
    assert out.count("request: ") == 7 and "edits made: 7, taken: 0" in out
    assert out.count("rephrase: ") == 4 and out.count("unrelated: ") == 7


def test_a_row_alone_is_edited_and_a_broken_one_refused(run, table):
    run("train", "--editor", "ike", "--data", table, "--out", "e")
    code, out, _ = run("edit", "--editor", "e", "--data", table, "--row", 8)
    assert code == 4 and out.startswith("row 8 -> green") and "edits made: 1, taken: 0" in out
    code, _, err = run("edit", "--editor", "e", "--data", table, "--row", 7)
    assert code == 2 and "--row 7: questions.csv: row 7: question: is empty" in err
    code, _, err = run("edit", "--editor", "e", "--data", table, "--target", "red")
    assert code == 2 and "--target: the rows of --data have it" in err
    code, _, err = run("explore", "--prompt", "What?", "--row", 1)
    assert code == 2 and "--row: it belongs to data; give --data" in err


def test_edits_need_a_column_of_targets(run, table):
    for command in ("train", "evaluate", "edit"):
        editor = ("--editor", "ike" if command == "train" else "e")
        code, _, err = run(command, *editor, "--data", table, "--columns", "target=")
        assert code == 2 and "has no column for the target" in err, err


def test_what_is_left_out_is_named_by_column(tmp_path, table):
    assert left_out(load("scenes-vqa", "test", limit=2)) == ""
    text = (tmp_path / table).read_text().replace("Now", "").replace("rephrase", "paraphrase")
    (tmp_path / table).write_text(text)
    first = left_out(load(tmp_path / table)[5:]).partition(";")[0]
    assert first == "nothing in the column paraphrase: T-Gen is left out"


def test_a_grid_compares_the_mean_of_all_five_scores(run, table, tmp_path):
    code, _, err = run("grid", "--data", table, "--split", "train")
    assert code == 2 and "without a column named split" in err
    lines = (tmp_path / table).read_text().splitlines()
    split = [f"{line},{'split' if i == 0 else 'a'}" for i, line in enumerate(lines)]
    (tmp_path / table).write_text("\n".join(split))
    code, _, err = run("grid", "--data", table, "--split", "a", "--test-split", "a")
    assert code == 2 and "mean of the papers' five scores: no image_rephrase column" in err
