"""`attrib report`: from the folders of runs, finished or not, or from runs that are made first."""

import json
from functools import partial

import planted_layer_report as planted
import planted_layers
import pytest
from conftest import picture, save_tiny

from attrib.results import Result
from attrib.selection import LayerReport

FORMS = ("report.html", "report.md", "report.json", "layers.json")
MADE = ("contributions", "sweep-text", "sweep-visual", "patching", "attention", "heatmap-2")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Figures take longer than all the rest."""
    monkeypatch.setattr("attrib.plots.svg", lambda *_given, **_options: "<svg></svg>")
    monkeypatch.setattr("attrib.plots.save", lambda _ax, stem: [stem])


@pytest.fixture
def report(run):
    return partial(run, "report")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and small data: two units, one bad row."""
    folder = tmp_path_factory.mktemp("report")
    save_tiny(folder / "model")
    (folder / "data" / "vqa").mkdir(parents=True)
    (folder / "data" / "images").mkdir()
    for i in range(3):
        picture(60 + i, 40, seed=i).save(folder / "data" / "images" / f"{i}.png")
    rows = [
        {"src": f"What is number {i}? {planted.EVIL}", "pred": "a dog", "rephrase": "Which?",
         "alt": f"cat {i}", "image": "lost.png" if i == 3 else f"{i % 3}.png",
         "image_rephrase": "0.png", "loc": "nq question: who wrote Emma", "loc_ans": "Jane Austen",
         "m_loc": "1.png", "m_loc_q": "Is it big?", "m_loc_a": "yes"}
        for i in range(18)
    ]  # fmt: skip
    (folder / "data" / "vqa" / "vqa_train.json").write_text(json.dumps(rows))
    return folder


def saved(folder, tables=None):
    """Planted tables as folders of finished runs."""
    for i, table in enumerate(planted_layers.evidence() if tables is None else tables):
        table.save(folder / f"{i}-{table.analysis}" / "result.parquet")
    return folder


def said(tmp_path, out="o"):
    return json.loads((tmp_path / out / "report.json").read_text())


def test_what_is_missing_is_made_read_again_and_read_in_part(report, folder, tmp_path, monkeypatch):
    on = ("--model", folder / "model", "--data", folder / "data", "--split", "vqa-train")
    code, out, err = report(*on, "--out", "o", "--pictures", 2)
    assert code == 0 and out.startswith("Edit ") and "heatmap: 1 batches" in err
    assert out.endswith("report.html\n")
    for name in FORMS:
        assert (tmp_path / "o" / name).is_file()
    for name in MADE:
        assert (tmp_path / "o" / name / "result.parquet").is_file()
    whole = said(tmp_path)
    assert whole["partial"] == "" and whole["quarantined"][0]["file"].endswith("vqa_train.json")
    assert len(whole["samples"]) == 17 and planted.EVIL in whole["samples"][0]["prompt"]
    page = (tmp_path / "o" / "report.html").read_text()
    assert 'class="over"' in page and planted.EVIL not in page
    again, *_ = whole["commands"]["Reproduce"]
    assert again.startswith("attrib report --model") and "--pictures 2" in again
    train = next(
        line for lines in whole["commands"].values() for line in lines if " train " in line
    )
    assert "--layers o/layers.json" in train and "--split vqa-train" in train
    lines = " ".join(line for some in whole["commands"].values() for line in some)
    assert "--test-split vqa-eval" in lines and "--split vqa-eval --editor o/editor" in lines

    for measure in ("contributions", "sensitivity", "patching", "attention", "heatmaps"):
        monkeypatch.setattr(f"attrib.analyses.{measure}.measure_{measure}", pytest.fail)
    assert report(*on, "--out", "o", "--pictures", 2)[0] == 0
    assert {**said(tmp_path), "commands": 0} == {**whole, "commands": 0}

    before = {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    monkeypatch.setattr("attrib.pipeline.source.load_model", pytest.fail)
    assert report("--from", "o", "--out", "p")[0] == 0
    read = said(tmp_path, "p")
    assert read["layers"] == whole["layers"] and read["scores"] == whole["scores"]
    assert before == {path: path.read_bytes() for path in before}

    # As a run is left that was stopped in its last analyses.
    (tmp_path / "o" / "attention" / "result.parquet").unlink()
    next((tmp_path / "o" / "attention" / "parts").glob("000001-*.rows.parquet")).unlink()
    for file in sorted((tmp_path / "o" / "patching").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    code, out, _ = report("--from", "o", "--out", "q")
    assert code == 0 and out.startswith("partial: 4 of 5 analyses; 16 of 18 examples of attention")
    assert "partial: 4 of 5" in (tmp_path / "q" / "report.html").read_text()


def test_a_damaged_part_counts_as_not_done(folder, tmp_path):
    from attrib.report.run_reader import read_run

    made = tmp_path / "attention"
    (made / "parts").mkdir(parents=True)
    head = {"layout": "attrib run 1", "command": "attention", "data": {"rows_read": 5}}
    (made / "manifest.json").write_text(json.dumps(head))
    assert read_run(made) is None and read_run(folder / "data") is None
    (made / "parts" / "000000-a.rows.parquet").write_text("cut off")
    assert read_run(made) is None


def test_folders_are_read_and_the_grid_judges(report, tmp_path, monkeypatch):
    monkeypatch.setattr("attrib.pipeline.source.load_model", pytest.fail)
    runs = saved(tmp_path / "runs")
    planted.grid().to_csv(tmp_path / "grid.csv", index=False)
    planted.grid().to_parquet(tmp_path / "grid.parquet")
    code, out, _ = report("--from", runs, "--out", "o", "--grid", "grid.csv")
    assert code == 0 and "the best of 121 cells" in out
    first = said(tmp_path)
    assert {row["pick"] for row in first["regret"]["both"]} >= {"consensus", "middle layer"}
    assert not any("attrib grid" in line for lines in first["commands"].values() for line in lines)
    assert report("--from", runs, "--out", "o", "--grid", "grid.parquet")[0] == 0
    assert said(tmp_path)["regret"] == first["regret"]
    assert report("--from", runs)[0] == 0 and said(tmp_path, "runs/report-runs")["regret"] is None


def test_the_choice_is_that_of_the_folder_unless_told_otherwise(report, tmp_path):
    runs = saved(tmp_path / "runs")
    from attrib.selection import select_layers

    chosen = select_layers(planted_layers.evidence(), "onset", number=2, seed=3)
    chosen.save(runs / "layers.json")
    assert report("--from", runs, "--out", "o")[0] == 0
    read = LayerReport.load(tmp_path / "o" / "layers.json")
    assert (read.rule, read.layers, read.provenance["seed"]) == ("onset", chosen.layers, 3)
    assert report("--from", runs, "--out", "p", "--rule", "patching")[0] == 0
    assert LayerReport.load(tmp_path / "p" / "layers.json").rule == "patching"


def test_layers_of_other_results_are_told_apart(report, tmp_path):
    runs = saved(tmp_path / "runs")
    from attrib.selection import select_layers

    late = planted_layers.noisy([0.0] * 10 + [1.0] * 2, 0.01, planted_layers.EXAMPLES, 0)
    other = planted_layers.contributions(attn=late.mean(0), mlp=late.mean(0))
    select_layers([other]).save(runs / "layers.json")
    code, _, err = report("--from", runs, "--out", "o")
    assert code == 0 and "layers.json, of other results" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", "nowhere"), "--from nowhere: no results of an analysis there"),
        (("--from", "bad"), "not a whole Parquet file"),
        (("--prompt", "What?"), "many examples"),
        (("--from", ".", "--grid", "none.csv"), "grid none.csv: no such file"),
    ],
)
def test_what_cannot_be_read_is_a_line_and_exit_code_2(report, tmp_path, arguments, told):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.parquet").write_text("no")
    code, _, err = report(*arguments)
    assert code == 2 and "Traceback" not in err and told in err


def test_evidence_that_chooses_nothing_is_said(report, tmp_path):
    silent = planted_layers.contributions(attn=[0.0] * 12, mlp=[0.0] * 12, noise=0.0)
    runs = saved(tmp_path / "runs", [Result(silent.analysis, silent.frame, silent.provenance)])
    code, _, err = report("--from", runs, "--out", "o")
    assert code == 2 and "no layer can be selected" in err and not (tmp_path / "o").exists()


def test_a_dry_run_writes_nothing(report, folder, tmp_path):
    on = ("--model", folder / "model", "--data", folder / "data", "--split", "vqa-train")
    code, out, _ = report(*on, "--out", "o", "--dry-run")
    assert code == 0 and out.count("dry run of") == 5 and not (tmp_path / "o").exists()
