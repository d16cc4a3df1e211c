"""`attrib table`: trains and scores what is missing, and puts it side by side."""

import json
import shutil

import pandas as pd
import pytest
from conftest import picture, save_tiny

from attrib.cli import table
from attrib.cli.table_options import TableOptions, agreed, write_settings
from attrib.errors import SetupError
from editors import EDITORS
from editors.evaluation.editor_table import Job, TableRun, make_jobs


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A model, and data of six rows to train on and to score."""
    folder = tmp_path_factory.mktemp("table")
    save_tiny(folder / "model-llava")
    (folder / "data" / "vqa").mkdir(parents=True)
    (folder / "data" / "images").mkdir()
    for i in range(2):
        picture(seed=i).save(folder / "data" / "images" / f"{i}.png")
    rows = [
        {
            "src": f"What is {i}?", "pred": "a dog", "rephrase": "Which is it?", "alt": "red",
            "image": "0.png", "image_rephrase": "1.png", "loc": "nq question: who",
            "loc_ans": "she", "m_loc": "1.png", "m_loc_q": "Is it big?", "m_loc_a": "yes",
        }
        for i in range(6)
    ]  # fmt: skip
    for part in ("train", "eval"):
        (folder / "data" / "vqa" / f"vqa_{part}.json").write_text(json.dumps(rows))
    return folder


def given(there, *more):
    return ("table", "--backbones", there / "model-llava", "--data", there / "data",
            "--train-split", "vqa-train", "--test-split", "vqa-eval", "--limit", 2, "--steps", 1,
            "--layers", "text:1 visual:0", "--gate", "none", "--protocols", "paper",
            "--out", "t", *more)  # fmt: skip


def test_unedited_answers_are_kept_with_the_data_that_they_are_of(run, there, tmp_path):
    shutil.copytree(there / "data", tmp_path / "other")
    command = list(given(there, "--editors", "ft-l"))
    command[command.index("--data") + 1] = f"{there / 'data'},{tmp_path / 'other'}"
    code, _, err = run(*command)
    assert code == 0, err
    kept = [tmp_path / "t" / "model-llava" / name / "unedited" for name in ("data", "other")]
    assert [len(list(folder.glob("*.json"))) for folder in kept] == [2, 2]


def test_editors_stand_side_by_side_and_nothing_is_done_twice_or_mixed(run, there, tmp_path):
    code, out, err = run(*given(there, "--editors", "ft-l,dualedit", "--seeds", 2, "--dry-run"))
    assert code == 0 and "3 of 3 are missing" in out and not (tmp_path / "t").exists(), err
    code, out, err = run(*given(there, "--editors", "ft-l,dualedit", "--seeds", 2))
    assert code == 0, err
    assert "table: 3 editors, 3 of them to be scored" in err  # ft-l has nothing to train: no seeds
    folder = tmp_path / "t" / "model-llava" / "data"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"table.md", "table.tex", "table.html", "scores.csv", "costs.csv"}
    assert names >= {"ft-l-seed-0", "dualedit-seed-0", "dualedit-seed-1"}
    bill = json.loads((folder / "dualedit-seed-0" / "spent.json").read_text())
    assert bill["training"] > 0 and bill["scoring"] > 0
    table = pd.read_csv(folder / "scores.csv").query("metric == 'rel'").set_index("editor")
    assert table["runs"].to_dict() == {"unedited": 1, "ft-l": 1, "dualedit": 2}
    assert str(folder.relative_to(tmp_path) / "table.md") in out
    weights = (folder / "dualedit-seed-0" / "adapters.safetensors").stat().st_mtime_ns
    code, _, err = run(*given(there, "--editors", "ft-v,dualedit", "--seeds", 2))
    assert code == 0, err
    assert "table: 3 editors, 1 of them to be scored" in err
    assert (
        "seed 1: done" in run(*given(there, "--editors", "dualedit", "--seeds", 2, "--dry-run"))[1]
    )
    names = list(dict.fromkeys(pd.read_csv(folder / "scores.csv")["editor"]))
    assert names == ["unedited", "dualedit", "ft-v", "ft-l"]  # what was there before as well
    assert (folder / "dualedit-seed-0" / "adapters.safetensors").stat().st_mtime_ns == weights
    settings = json.loads((tmp_path / "t" / "table.json").read_text())
    del settings["template"]  # which earlier versions did not have
    (tmp_path / "t" / "table.json").write_text(json.dumps(settings))
    assert run(*given(there, "--editors", "ft-l"))[0] == 0
    code, _, err = run(*given(there, "--editors", "ft-l", "--template", "chat"))
    assert code == 3 and 'template: "raw" there, "chat" now' in err
    code, _, err = run(*given(there, "--editors", "ft-l", "--limit", 3))
    assert code == 3 and "made with other settings: limit: 2 there, 3 now" in err


def test_settings_reach_every_editor_that_has_them(run, there, tmp_path):
    some = given(there, "--editors", "ike,ft-l,dualedit", "--set", "end_token=true")
    code, _, err = run(*some)
    assert code == 0, err
    for name, told in (("ike", False), ("ft-l", True), ("dualedit", True)):
        record = tmp_path / "t" / "model-llava" / "data" / f"{name}-seed-0" / "editor.json"
        assert ('"end_token": true' in record.read_text()) == told
    code, _, err = run(*given(there, "--editors", "ft-l"))
    assert code == 3 and 'set: ["end_token=true"] there, [] now' in err
    code, _, err = run(*given(there, "--editors", "ike", "--set", "end_token=true", "--out", "u"))
    assert code != 0 and "--set end_token: none of ike has such an option" in err
    code, _, err = run(*given(there, "--editors", "ft-l", "--set", "end_token", "--out", "u"))
    assert code != 0 and "expected name=value" in err and not (tmp_path / "u").exists()


def test_every_editor_is_scored_as_it_is_and_behind_one_gate(run, there, tmp_path):
    some = [str(x) for x in given(there, "--editors", "ft-l,dualedit", "--gate-layer", 0)]
    some += ["--fluency", "4"]
    some[some.index("--gate") + 1] = "prompt_last"
    code, _, err = run(*some)
    assert code == 0, err
    folder = tmp_path / "t" / "model-llava" / "data"
    assert (folder / "gate-prompt_last-seed-0" / "gate.json").exists()
    rows = pd.read_csv(folder / "scores.csv").query("metric == 'rel'")
    both = [(e, g) for e in ("ft-l", "dualedit") for g in ("ungated", "prompt_last")]
    assert set(zip(rows["editor"], rows["gate"], strict=True)) == {("unedited", "-"), *both}
    differences = pd.read_csv(folder / "differences.csv")
    assert len(differences.query("metric == 'avg'")) == 6  # pairs of four
    text = (folder / "table.md").read_text()
    assert "Paired differences" in text and "Holm" in text and "peak MiB of an edit" in text
    assert "repetition after" in text and "n-gram entropy before" in text
    code, _, err = run(*some)
    assert "table: 2 editors, 0 of them to be scored" in err
    code, _, err = run(*some, "--seeds", 2)
    assert code == 0 and "table: 4 editors, 2 of them to be scored" in err
    assert (folder / "dualedit-seed-1" / "scores").is_dir()
    gated = folder / "ft-l-seed-1" / "scores-behind-the-gate"  # another gate is all that differs
    assert gated.is_dir() and not (folder / "ft-l-seed-1" / "scores").exists()
    rows = pd.read_csv(folder / "scores.csv").query("metric == 'rel' and editor == 'ft-l'")
    assert rows.set_index("gate")["runs"].to_dict() == {"ungated": 1, "prompt_last": 2}


def test_a_seed_has_its_own_training_scenes_and_gate_and_all_seeds_the_same_test(
    monkeypatch, tmp_path
):
    """Otherwise the spread over seeds would be that of the adapters alone."""
    options = TableOptions(train_limit=8, limit=4, out=tmp_path)
    jobs = [Job("tiny-llava", "scenes-vqa", "dualedit", seed) for seed in (0, 1, 1)]
    parts = {part: [table._load_data(job, part, options) for job in jobs]
             for part in ("train", "test")}  # fmt: skip
    said = {part: [[(s.id, s.request.prompt, s.request.target) for s in one] for one in some]
            for part, some in parts.items()}  # fmt: skip
    assert said["train"][0] != said["train"][1] == said["train"][2]
    assert said["test"][0] == said["test"][1]
    fitted = []
    monkeypatch.setattr(
        "editors.gating.fitted.fit_once", lambda folder, *given: fitted.append((folder, given))
    )
    folders = [table._gate(None, job, options) for job in jobs[:2]]
    assert folders[0] != folders[1] == fitted[1][0]
    assert [given[-2] for _, given in fitted] == [0, 1]
    assert [[s.id for s in given[2]()] for _, given in fitted] == [
        [s.id for s in one] for one in parts["train"][:2]
    ]


def test_the_first_of_several_processes_alone_tabulates(run, there, tmp_path, monkeypatch):
    """The others are done before it has collected the scores."""
    monkeypatch.setattr(TableRun, "execute", lambda *_: None)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = run(*given(there, "--editors", "ft-l"))
    assert code == 0 and not out, err
    assert not list((tmp_path / "t").rglob("table.md"))


@pytest.mark.parametrize(("flags", "told"), [
    (("--protocols", "exact,papr"), "no protocol 'papr'; protocols are paper, exact, generate"),
    (("--gate", "prompt_last", "--gate-layer", 99), "--gate-layer 99: "),
    (("--layers", "text:1 visul:0"), "--layers: 'visul:0' in "),
    (("--layers", "text:77"), "there is no layer 77"),
])  # fmt: skip
def test_a_wrong_option_neither_trains_an_editor_nor_takes_the_folder(
    run, there, tmp_path, flags, told
):
    code, _, err = run(*given(there, "--editors", "dualedit"), *flags)
    assert code == 2 and told in err
    assert not (tmp_path / "t").exists()


def test_protocols_may_be_given_in_any_order(there, tmp_path):
    some = {"layers": "text:1", "out": tmp_path}
    there = TableOptions(protocols="exact, paper", **some)
    assert there.protocols == TableOptions(protocols="paper,exact", **some).protocols
    write_settings(there)
    file, other = tmp_path / "table.json", TableOptions(protocols="paper", **some)
    with pytest.raises(SetupError, match='protocols: "paper,exact" there, "paper" now'):
        agreed(other)
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"protocols": "exact,paper"}))  # of an earlier version
    assert agreed(there).protocols == "exact,paper"  # as the scores there are recorded
    file.write_text(json.dumps(settings | {"protocols": "exact,papr"}))  # there are no scores
    assert agreed(other).protocols == "paper"


def test_unknown_editors_are_refused(run, there):
    code, _, err = run(*given(there, "--editors", "rome"))
    assert code == 2 and "--editors: there is no 'rome'; there are" in err


def test_all_editors_are_ten_and_those_without_training_have_the_seeds_of_the_gate():
    jobs = make_jobs(["a", "b"], ["scenes-vqa"], list(EDITORS), 3)
    assert len({job.editor for job in jobs}) == 10
    seeds = {job.editor: sum(j.editor == job.editor for j in jobs) / 2 for job in jobs}
    assert seeds["ft-l"] == seeds["ft-v"] == seeds["ike"] == 1
    assert seeds["dualedit"] == seeds["mend"] == 3
    assert len(make_jobs(["a"], ["scenes-vqa"], list(EDITORS), 3, gated=True)) == 3 * 10
