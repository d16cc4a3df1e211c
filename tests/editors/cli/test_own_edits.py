"""Ten questions of one's own in a CSV, two of them broken: analysed, edited and scored."""

import csv
from pathlib import Path

import pandas as pd
import pytest

import attrib.cli.edit as edit_command
from attrib.cli.train import TrainOptions
from attrib.cli.train import _evaluation as evaluation_of
from attrib.data import load, sample_image
from attrib.errors import AttribError
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
    assert out.count("request: ") == 7
    assert out.endswith("edits made: 7, taken: 0, rows quarantined: 2\n")
    assert out.count("rephrase: ") == 4 and out.count("unrelated: ") == 7


def test_a_row_alone_is_edited_and_a_broken_one_refused(run, table):
    run("train", "--editor", "ike", "--data", table, "--out", "e")
    code, out, _ = run("edit", "--editor", "e", "--data", table, "--row", 8)
    assert code == 4 and out.startswith("row 8 -> green") and "edits made: 1, taken: 0" in out
    code, _, err = run("edit", "--editor", "e", "--data", table, "--row", 99)
    assert code == 2 and "--row 99: questions.csv has rows 0 to 9" in err
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


def test_a_row_that_fails_is_counted_and_the_others_go_on(run, table, monkeypatch):
    run("train", "--editor", "ike", "--data", table, "--out", "e")
    ask = edit_command._ask

    def fails_once(vlm, made, questions, longest):
        if questions[0][2].startswith(ASKED[1]):
            raise AttribError("too long for the model")
        return ask(vlm, made, questions, longest)

    monkeypatch.setattr(edit_command, "_ask", fails_once)
    monkeypatch.setattr("editors.evaluation.protocols.begins_with_target", lambda *_: True)
    edited = ("edit", "--editor", "e", "--data", table, "--limit", 5)
    code, out, err = run(*edited)
    assert code == 0 and out.endswith("edits made: 2, taken: 2, rows quarantined: 3\n"), err
    assert "quarantined: questions.csv: row 1: edit: too long for the model" in err
    code, _, err = run(*edited, "--max-failures", 2)
    assert code == 1 and "3 rows quarantined, more than --max-failures 2" in err
    assert run(*edited, "--max-failures", 3)[0] == 0


def test_rows_are_counted_where_none_can_be_used(run, tmp_path):
    (tmp_path / "none.csv").write_text("file,question,answer\ngone.png,What?,a\ngone.png,,b\n")
    code, _, err = run("explore", "--data", "none.csv", "--row", 99)
    assert code == 2 and "--row 99: none.csv has rows 0 to 1" in err
    code, _, err = run("explore", "--data", "none.csv")
    assert code == 2 and "none.csv: no row can be used; the first: none.csv: row 0: file" in err


def test_the_next_command_evaluates_the_table_on_its_other_part(tmp_path):
    def hint(data, split=None):
        return evaluation_of(TrainOptions(data=str(data), split=split), Path("e"))

    path = tmp_path / "train.csv"
    path.write_text("question,answer,split\nWhat?,a,training\nWhat?,b,train\n")
    assert "--split training" in hint(path, "training") and "--split" not in hint(path)
    path.write_text(path.read_text() + "Who?,c,test\n")
    assert hint(path, "train").endswith(f"--data {path} --split test")
    assert hint(tmp_path / "trains", "vqa-train").endswith("--split vqa-eval")
