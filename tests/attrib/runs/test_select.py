"""`attrib select`: evidence made where it is missing, read where it is there."""

import json
from functools import partial
from typing import get_args

import pandas as pd
import planted_layers as planted
import pytest
from conftest import save_tiny
from small_data import write_data

from attrib.cli.select import SelectOptions
from attrib.cli.table import selected
from attrib.selection import LayerReport
from attrib.vocabulary import RuleName

MADE = ("contributions", "sweep-text", "sweep-visual", "patching", "attention")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model and small data."""
    folder = tmp_path_factory.mktemp("select")
    save_tiny(folder / "model")
    write_data(folder / "data", rows=6)
    return folder


@pytest.fixture
def select(run, monkeypatch):
    """Run `attrib select`; figures are not drawn: that takes longer than all the rest."""
    monkeypatch.setattr("attrib.plots.selection", lambda *_tables: None)
    monkeypatch.setattr("attrib.plots.save", lambda _ax, stem: [stem])
    return partial(run, "select")


def on(folder):
    return ("--model", folder / "model", "--data", folder / "data", "--split", "vqa-train",
            "--out", "o")  # fmt: skip


def saved(folder, tables=None):
    """Planted tables as folders of finished runs."""
    for i, table in enumerate(planted.evidence() if tables is None else tables):
        table.save(folder / f"{i}-{table.analysis}" / "result.parquet")
    return folder


def test_what_is_missing_is_made_and_not_made_again(select, folder, tmp_path, monkeypatch):
    code, out, _ = select(*on(folder), "--dry-run")
    assert code == 0 and out.count("dry run of") == len(MADE) and not (tmp_path / "o").exists()
    code, first, _ = select(*on(folder))
    assert code == 0 and "Edit the text tokens at the output of layer" in first
    said = "The model gives the right answer to 0 of 6 prompts: 0 %"
    assert first.startswith(said) and "Warning: Attribution of wrong answers says" in first
    for name in MADE:
        assert (tmp_path / "o" / name / "result.parquet").is_file()
    layers = (tmp_path / "o" / "layers.json").read_text()
    report = LayerReport.load(tmp_path / "o" / "layers.json")
    assert report.provenance["invocation"].startswith("attrib select --model")
    sweep = json.loads((tmp_path / "o" / "sweep-text" / "manifest.json").read_text())
    assert sweep["options"]["exclude_last"] is True and sweep["command"] == "sweep"
    for measure in ("contributions", "sensitivity", "patching", "attention"):
        monkeypatch.setattr(f"attrib.analyses.{measure}.measure_{measure}", pytest.fail)
    code, again, err = select(*on(folder), "--batch-size", 3)
    assert (code, again) == (0, first) and err.count("exist already") == len(MADE)
    now = json.loads((tmp_path / "o" / "layers.json").read_text())
    assert now["choices"] == json.loads(layers)["choices"]
    # The folders are those of the commands themselves.
    code, out, _ = select("--from", "o", "--out", "p", "--rule", "onset")
    assert code == 0 and "by onset" in out and out.startswith(said)
    assert LayerReport.load(tmp_path / "p" / "layers.json").choices == report.choices


def test_an_analysis_that_refuses_the_data_is_left_out_and_said(select, folder, monkeypatch):
    from attrib.errors import AttribError

    def refused(*_given, **_options):
        raise AttribError("patching needs another image")

    monkeypatch.setattr("attrib.analyses.patching.measure_patching", refused)
    code, out, err = select(*on(folder))
    assert code == 0 and "patching left out: patching needs another image" in err
    assert "patching of visual left out" in out


def test_folders_of_runs_are_read_and_nothing_is_computed(select, tmp_path, monkeypatch):
    monkeypatch.setattr("attrib.pipeline.source.load_model", pytest.fail)
    runs = saved(tmp_path / "runs")
    code, out, _ = select("--from", runs, "--out", "o", "--number", 2)
    assert code == 0 and "onset 6, sensitivity 3, patching 4" in out
    report = LayerReport.load(tmp_path / "o" / "layers.json")
    assert len(report.layers["visual"]) == 2 and report.model["name"] == "planted"
    scores = pd.read_csv(tmp_path / "o" / "scores.csv")
    assert set(scores["modality"]) == {"text", "visual"}
    one = [option for folder in sorted(runs.iterdir()) for option in ("--from", folder)]
    assert select(*one, "--out", "p", "--number", 2)[1].replace("p/", "o/") == out


def test_a_grid_tells_what_the_choice_costs(select, tmp_path):
    report_at, rows = saved(tmp_path / "runs"), []
    for text in range(planted.LAYERS - 1):
        for visual in range(planted.LAYERS - 1):
            rows += [(text, visual, seed, 90 - abs(text - 4) - abs(visual - 4)) for seed in (0, 1)]
    table = pd.DataFrame(rows, columns=["text", "visual", "seed", "score"])
    table.to_csv(tmp_path / "grid.csv", index=False)
    table.to_parquet(tmp_path / "grid.parquet")
    code, out, _ = select("--from", report_at, "--out", "o", "--against", "grid.csv")
    assert code == 0 and "Editors at the layers of consensus" in out and "middle layer 4.00" in out
    judged = pd.read_csv(tmp_path / "o" / "regret.csv")
    assert {"consensus", "onset", "middle layer"} <= set(judged["pick"])
    assert set(pd.read_csv(tmp_path / "o" / "correlations.csv")["modality"]) == {"text", "visual"}
    again = select("--from", report_at, "--out", "o", "--against", "grid.parquet")
    assert again[:2] == (code, out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", "nowhere"), "--from nowhere: no results of an analysis there"),
        (("--from", ".", "--rule", "best"), "Input should be"),
        (("--from", "bad"), "not a whole Parquet file"),
        (("--prompt", "What?"), "not one photo"),
        (("--against", "none.csv"), "grid none.csv: no such file"),
    ],
)
def test_what_cannot_be_read_is_a_line_and_exit_code_2(select, tmp_path, arguments, told):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.parquet").write_text("no")
    code, _, err = select(*arguments)
    assert code == 2 and "Traceback" not in err
    assert told in err or "is not one of" in err  # typer refuses an unknown rule itself


def test_results_of_two_models_are_refused(select, tmp_path):
    tables = [planted.contributions(), planted.sweep("text", model={"fingerprint": "other"})]
    code, _, err = select("--from", saved(tmp_path / "runs", tables), "--out", "o")
    assert code == 2 and "for one model" in err and not (tmp_path / "o").exists()


def test_only_the_first_process_reports(select, folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, _ = select(*on(folder))
    assert (code, out) == (0, "")


def test_layers_are_not_chosen_on_what_editors_are_tested_on(select, monkeypatch):
    asked = []

    def only_asked(options, _out, _load):
        asked.append(options.split)

    monkeypatch.setattr("attrib.cli.select.make_evidence", only_asked)
    for more in ((), ("--data", "scenes-captions"), ("--split", "test"), ("--data", "folder")):
        assert select(*more)[0] == 0
    assert asked == ["validation", "validation", "test", None]


def test_the_command_knows_all_rules():
    assert SelectOptions.model_fields["rule"].annotation == RuleName
    assert set(get_args(RuleName)) >= {"consensus", "onset", "sensitivity", "patching"}


def test_every_word_asked_for_is_looked_at_in_a_folder_of_its_own(select, monkeypatch, tmp_path):
    def made(options, out, _load):
        asked[out.name] = options.answer_prefix
        return [planted.patching(visual=9 - options.answer_prefix, last=6)]

    asked = {}
    monkeypatch.setattr("attrib.cli.select.make_evidence", made)
    code, out, _ = select("--lead", 2, "--words", 2, "--rule", "patching", "--out", "o")
    assert code == 0 and asked == {"word-1": 2, "word-2": 3}
    assert "Word 1 of the answer: text 5, visual 6" in out
    assert "Word 2 of the answer: text 5, visual 5" in out
    assert LayerReport.load(tmp_path / "o" / "layers.json").layers == {"text": [5], "visual": [5]}
    for number, layer in ((1, 6), (2, 5)):
        report = LayerReport.load(tmp_path / "o" / f"word-{number}" / "layers.json")
        assert report.layers["visual"] == [layer]


def test_words_begin_behind_what_answers_share(select, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "attrib.cli.select.make_evidence",
        lambda options, *_: asked.append(options.answer_prefix),
    )
    code, _, _ = select("--data", "scenes-captions", "--limit", 30, "--words", 2, "--out", "o")
    assert code == 0 and asked == [1, 2]


@pytest.mark.parametrize(("data", "leads"), [("scenes-vqa", [0]), ("scenes-captions", [1, 2])])
@pytest.mark.usefixtures("select")
def test_a_table_looks_at_two_words_of_long_answers(monkeypatch, tmp_path, data, leads):
    asked = []

    def made(options, _out, _load):
        asked.append(options.answer_prefix or 0)
        return planted.evidence()

    monkeypatch.setattr("attrib.cli.select.make_evidence", made)
    for _ in range(2):  # picked once
        file = selected({"data": data, "image_root": None}, None, tmp_path / "select")
        assert asked == leads and LayerReport.load(file).layers["text"]


def test_finished_analyses_are_of_one_word(select, tmp_path):
    code, _, err = select("--from", saved(tmp_path / "runs"), "--words", 2, "--out", "o")
    assert code == 2 and "finished analyses have one word each" in err
