"""The comparison of editors: what stands in it, in every format, with all names escaped."""

import csv
import re
from itertools import product

import pytest
from planted_scores import result

from editors import EDITORS
from editors.evaluation.comparison import PUBLISHED, Comparison, Trained, published

NASTY = '<script>alert("{{7*7}}")</script> & 50 % of_all | x'


CURVE = [{"step": step, "loss": 2.0 - step, "request": step / 2} for step in range(3)]
TRAINED = (Trained("dualedit", 0, 61.0, CURVE), Trained("dualedit", 1, 59.0, CURVE[:2]))


def comparison(*results, model="tiny-llava", data="scenes-vqa", trainings=TRAINED[:1]):
    made = results or (result(0.75, "dualedit"),)
    return Comparison(model, data, made, trainings, "attrib table")


def test_every_part_has_its_rows():
    parts = comparison(result(0.5, "ft-l"), result(0.75, "dualedit")).parts()
    titles = [title for title, _, _ in parts]
    assert [title.split(":")[0] for title in titles] == [
        "Protocol paper", "Protocol generate", "Costs of an edit (medians) and of training",
        "As published, on the real models and data",
    ]  # fmt: skip
    table, note = parts[0][1:]
    assert table["editor"].tolist() == ["unedited", "ft-l", "dualedit"]
    assert table["Rel"].tolist() == [
        "0.0 [0.0, 49.0]", "50.0 [50.0, 50.0]", "75.0 [75.0, 75.0]",
    ]  # fmt: skip
    assert "over 4 edits, clustered by what they share" in note and note.endswith(" One seed.")
    costs = parts[2][1].set_index("editor")
    assert costs["training, s"].to_dict() == {"ft-l": "0", "dualedit": "61"}


def test_an_editor_and_its_gate_alone_are_no_table_of_differences(tmp_path):
    """They are one editor: their difference is in the file."""
    gates = [result(0.75, "dualedit", gate) for gate in ("ungated", "learned")]
    for one in (*gates, other := result(0.5, "ft-l")):
        one.frame["metric"] = one.frame["metric"].replace("rel", "avg")

    def titles(*some):
        return [title for title, _, _ in comparison(*some).parts()]

    assert "Paired differences" not in titles(*gates)
    assert "Paired differences" in titles(*gates, other)
    assert "differences.csv" in [path.name for path in comparison(*gates).save(tmp_path)]


def test_seeds_show_their_spread():
    ((_, table, note), *_) = comparison(*(result(x, "dualedit") for x in (0.5, 1.0))).parts()
    assert table["Rel"].tolist()[1].startswith("75.0 ±35.4 [")
    assert "Up to 2 seeds" in note


def test_all_formats_are_written_and_hold_the_numbers(tmp_path):
    files = comparison().save(tmp_path)
    names = ["table.md", "table.tex", "table.html", "scores.csv", "costs.csv", "learning.csv"]
    assert [path.name for path in files] == names
    for name in names[:3]:
        text = (tmp_path / name).read_text()
        assert "75.0 [75.0, 75.0]" in text and "attrib table" in text and "96.94" in text
    latex = (tmp_path / "table.tex").read_text()
    fitted = re.findall(r"\{max width=\\linewidth\}\\begin\{tabular\}", latex)
    assert len(fitted) == latex.count(r"\toprule") == latex.count(r"\end{adjustbox}") > 0


def test_learning_curves_hold_every_number_of_every_seed(tmp_path):
    curves = comparison(trainings=TRAINED).curves()
    assert len(curves) == 2 * 5
    said = curves[(curves["seed"] == 1) & (curves["name"] == "request")]
    assert said[["step", "value"]].to_numpy().tolist() == [[0, 0.0], [1, 0.5]]
    costs = comparison(trainings=TRAINED).parts()[2][1]
    assert costs["training, s"].tolist() == ["60"]  # the median of the seeds
    without = comparison(trainings=()).save(tmp_path)
    assert not [path for path in without if "learning" in path.name]


def test_names_are_text_in_every_format(tmp_path):
    comparison(result(0.5, NASTY), model=NASTY).save(tmp_path)
    page = (tmp_path / "table.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    text = (tmp_path / "table.md").read_text()
    assert "<script>" not in text
    cells = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in cells if "script" in row[1]]
    assert len(rows) == 3 and len(rows[0]) == len(cells[0])  # the bar in the name parts no cell
    latex = (tmp_path / "table.tex").read_text()
    body = [line for line in latex.splitlines() if "script" in line]
    assert body and not any(re.search(r"(?<!\\)[%_]", line) for line in body)


def test_published_rows_are_those_of_the_family_and_task():
    table = published("tiny-llava", "scenes-vqa").set_index("editor")
    assert table.loc["dualedit", "Rel"] == 96.94 and table.loc["dualedit", "Avg"] == 97.84
    assert set(table["protocol"]) == {"paper"}
    blip = published("Salesforce/blip2-opt-2.7b", "E-IC").set_index("editor")
    assert blip.loc["serac", "M-Loc"] == 0.47
    assert blip.loc["serac", "protocol"].startswith("easyedit: not comparable")
    assert published("gpt2", "scenes-vqa").empty and published("tiny-llava", "other").empty


def test_the_published_file_is_whole():
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["editor"] for row in rows} == set(EDITORS)
    there = {(row["editor"], row["backbone"], row["data"]) for row in rows}
    wanted = set(product(EDITORS, ("blip2", "llava", "minigpt4"), ("E-VQA", "E-IC")))
    # DualEdit was published on two of the three.
    assert wanted - there == {("dualedit", "minigpt4", data) for data in ("E-VQA", "E-IC")}
    for row in rows:
        assert all(0 <= float(row[name]) <= 100 for name in ("rel", "t_gen", "v_gen", "m_loc"))


@pytest.mark.parametrize("backbone", ["blip2", "minigpt4"])
def test_copied_rows_are_marked(backbone):
    table = published(backbone, "E-VQA").set_index("editor")
    copied = table["protocol"].str.startswith("easyedit")
    assert set(table.index[copied]) == {"ke", "ike", "serac", "mend"}
