"""`attrib evaluate`: scored, resumed, refused, with bad rows named."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from conftest import picture, save_tiny
from planted_editors import Leaks, Says

from attrib import cli
from attrib.cli.evaluate import EvaluateOptions, scored_edits
from attrib.cli.gates import training_edits
from attrib.errors import SetupError
from attrib.results import Result
from editors import registry
from editors.gating.gates import CosineGate, save_gate

ROWS = 4  # two shards


def row(i):
    return {
        "src": "What is it?", "pred": "a dog", "rephrase": "Which is it?", "alt": "red",
        "image": "0.png", "image_rephrase": "1.png", "loc": "nq question: who", "loc_ans": "she",
        "m_loc": "1.png", "m_loc_q": "Is it big?", "m_loc_a": "yes", "kind": "color",
    } | ({"image": "none.png"} if i == 1 else {})  # fmt: skip


@dataclass
class Loaded(Says):
    """A planted editor that can be loaded."""

    needs_layers = is_trained = False
    train = save = merge = lambda *_: None  # never called

    @classmethod
    def load(cls, path, _vlm):
        if "other" in json.loads((Path(path) / "editor.json").read_text()):
            raise SetupError(f"{path} was trained for another model")
        return cls()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A model, data with one row that cannot be used, and a saved editor."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_tiny(folder / "model")
    (folder / "data" / "vqa").mkdir(parents=True)
    (folder / "data" / "images").mkdir()
    for i in range(2):
        picture(seed=i).save(folder / "data" / "images" / f"{i}.png")
    rows = [row(i) for i in range(ROWS)]
    (folder / "data" / "vqa" / "vqa_eval.json").write_text(json.dumps(rows))
    (folder / "editor").mkdir()
    (folder / "editor" / "editor.json").write_text('{"editor": "says"}')
    return folder


@pytest.fixture
def run(there, quickly_loaded, monkeypatch, capsys, tmp_path):  # noqa: ARG001 - patches
    """Run the command in an empty folder; its exit code, standard output and error."""
    monkeypatch.setattr(registry, "EDITORS", {"says": Loaded})
    monkeypatch.setattr("attrib.runs.shards.ROWS", 2)

    def run(*arguments, **changed):
        on = {"model": there / "model", "data": there / "data", "split": "vqa-eval", "out": "o",
              "editor": there / "editor", "protocols": "paper,exact"} | changed  # fmt: skip
        flags = [str(part) for name, value in on.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["attrib", "evaluate", *flags, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def scores(path):
    return Result.load(path / "o" / "scores.parquet")


def test_scores_tables_and_bad_rows_are_written(run, tmp_path):
    code, out, err = run("--max-failures", "0")
    assert code == 1 and "row 1: image" in err and "edits used: 3, rows quarantined: 1" in out
    assert re.search(r"unedited +says\ngate +- +ungated\n", out)
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names >= {"scores.parquet", "summary.csv", "summary.md", "costs.csv", "manifest.json",
                     "quarantined.csv"}  # fmt: skip
    result = scores(tmp_path)
    assert result.examples == 3 and result.provenance["options"]["gate"] == "ungated"
    table = pd.read_csv(tmp_path / "o" / "summary.csv")
    rel = table[(table["metric"] == "rel") & (table["protocol"] == "exact")]
    assert dict(zip(rel["editor"], rel["mean"], strict=True))["says"] == 100
    code, again, err = run()
    assert (code, again) == (0, out) and "2 of 2 shards exist already" in err


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(run, tmp_path, monkeypatch):
    edit, left = Loaded.edit, iter(range(3))

    def stop(self, vlm, request):
        if next(left) == 2:
            raise KeyboardInterrupt
        return edit(self, vlm, request)

    monkeypatch.setattr(Loaded, "edit", stop)
    code, _, err = run()
    assert code == 130 and "interrupted; to continue: attrib evaluate" in err
    made = []
    monkeypatch.setattr(Loaded, "edit", lambda *given: made.append(1) or edit(*given))
    assert run("--batch-size", "3")[0] == 0 and len(made) == 2
    rest = scores(tmp_path).where(editor="says", protocol="paper", metric="rel")
    assert rest.examples == 3 and set(rest.frame["value"]) == {1.0}


def test_another_editor_is_another_run(run, there):
    assert run()[0] == 0
    (there / "editor" / "x.safetensors").write_bytes(b"other weights")
    code, _, err = run()
    (there / "editor" / "x.safetensors").unlink()
    assert code == 3 and "files: " in err and "give another --out" in err
    code, _, err = run("--label", "text 4")
    assert code == 3 and 'label: "says" there, "text 4" now' in err


def test_a_gate_is_put_in_front_of_any_editor(run, tmp_path):
    gate = save_gate(tmp_path / "g" / "gate", CosineGate(0, 0.5, "sequence_last"))
    code, _, err = run("--gate", "garden")
    assert code == 2 and "--gate garden: no such folder, and none of none, prompt_last" in err
    assert run("--gate", tmp_path)[0] == 3
    for folder in (gate, gate.parent):  # of a gate, or of an editor with one
        code, out, _ = run("--gate", folder)
    assert code == 0 and re.search(
        r"unedited +says\ngate +- +sequence_last \(reads the answer\)\n", out
    )
    assert scores(tmp_path).provenance["options"]["gate"] == "sequence_last (reads the answer)"
    code, _, err = run()
    assert code == 3 and 'gate: "sequence_last (reads the answer)" there, "ungated" now' in err


def test_both_rows_come_from_one_run(run, tmp_path):
    gate = save_gate(tmp_path / "g", CosineGate(0, 0.99))
    code, out, _ = run("--gate", gate, "--both")
    assert code in (0, 1)
    assert re.search(r"unedited +says +says\ngate +- +ungated +prompt_last\n", out)
    assert scores(tmp_path).provenance["options"]["behind"] == "prompt_last"
    for more in ((), ("--gate", "none")):
        code, _, err = run("--both", *more)
        assert code == 2 and "give the gate behind which edits are scored too, with --gate" in err


def test_a_gate_is_fitted_to_the_training_edits_by_name(run, there, tmp_path):
    rows = (there / "data" / "vqa" / "vqa_eval.json").read_text()
    (there / "data" / "vqa" / "vqa_train.json").write_text(rows)
    code, out, err = run("--gate", "prompt_last", "--gate-layer", 0)
    (there / "data" / "vqa" / "vqa_train.json").unlink()
    assert code in (0, 1) and re.search(r"unedited +says\ngate +- +prompt_last\n", out)
    assert "prompt_last at layer 0, fitted to 3 training edits, into o-gate-prompt_last" in err
    assert json.loads((tmp_path / "o-gate-prompt_last" / "gate.json").read_text())["layer"] == 0
    code, again, err = run("--gate", "prompt_last", "--gate-layer", 0)
    assert again == out and "fitted" not in err  # it is kept
    shutil.rmtree(tmp_path / "o")  # a run that was stopped before its first shard has no record
    refused = "o-gate-prompt_last holds a gate that was fitted otherwise: "
    for more, told in (
        (("--gate-layer", 1), "layer: 0 there, 1 now"),
        (("--gate-layer", 0, "--gate-limit", 2), "gate_limit: null there, 2 now"),
    ):
        code, _, err = run("--gate", "prompt_last", *more)
        assert code == 2 and refused + told in err


def test_an_editor_that_leaves_the_model_changed_stops_the_run(run, monkeypatch):
    monkeypatch.setattr(Loaded, "edit", Leaks().edit)
    code, out, err = run()
    assert code == 3 and "editor says did not leave the model as it was" in err and not out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (None, "no trained editor (no editor.json); train one with `attrib train`"),
        ("{", "not the record of an editor"),
        ('{"editor": "none"}', "no editor is called 'none'; known are says"),
        ('{"editor": "says", "other": 1}', "was trained for another model"),
    ],
)
def test_a_folder_without_a_usable_editor_is_refused(run, tmp_path, record, told):
    folder = tmp_path / "editor"
    folder.mkdir()
    if record:
        (folder / "editor.json").write_text(record)
    code, _, err = run(editor=folder)
    assert code == 3 and told in err and "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_wrong_options_are_told(run):
    code, _, err = run(protocols="paper,strict")
    assert code == 2 and "no protocol 'strict'; protocols are paper, exact, generate" in err
    assert run("--prompt", "What is it?")[0] == 2
    code, out, _ = run("--dry-run")
    assert code == 0 and "shards: 2, 0 of them done" in out


def test_several_edits_in_sequence_are_a_row_each(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Loaded, "sequential", True, raising=False)
    code, _, err = run("--at-once", "3", protocols="paper", out="x")
    assert code and "sets the same weights in each edit: make them in sequence, --seq" in err
    code, _, err = run("--at-once", "3", sequential="3")
    assert code == 2 and "held at once or made in sequence, not both" in err
    code, out, err = run("--peak-memory", sequential="1,3", protocols="paper")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "o").glob("seq*")} == {"sequential-1", "sequential-3"}
    table = pd.read_csv(tmp_path / "o" / "summary.csv").query("metric == 'rel'")
    means = dict(zip(table["editor"], table["mean"], strict=True))
    assert means["says, 1 edits in sequence"] == 100
    assert set(means) == {"unedited", "says, 1 edits in sequence", "says, 3 edits in sequence"}
    assert "says, 3 edits in sequence" in out
    peaks = pd.read_csv(tmp_path / "o" / "costs.csv")["peak_bytes"]
    assert len(peaks) == 2 and (peaks > 0).all()  # of each number of edits
    _, again, err = run("--peak-memory", sequential="1,3", protocols="paper")
    assert again == out and err.count("2 of 2 shards exist already") == 2


@pytest.mark.parametrize("numbers", ["0", "1,", "two", "1,-3"])
def test_numbers_of_edits_must_be_numbers(run, numbers):
    code, _, err = run(sequential=numbers)
    assert code == 2 and "expected numbers of edits such as 1,10,100" in err


def test_edits_in_sequence_are_refused_behind_a_gate_before_it_is_fitted(run, tmp_path):
    code, _, err = run("--gate", "learned", sequential="2")
    assert code == 2 and "--sequential: edits behind a gate" in err
    assert not list(tmp_path.rglob("*gate-learned*"))


def test_disjoint_is_about_the_edits_that_a_gate_is_fitted_to(there, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(there / "data", folder)
    rows = json.loads((folder / "vqa" / "vqa_eval.json").read_text())
    (folder / "vqa" / "vqa_train.json").write_text(json.dumps(rows[:1]))
    found = {}
    for gate in (None, "learned", "none"):
        for disjoint in (False, True):
            given = {"data": str(folder), "split": "vqa-eval", "gate": gate, "disjoint": disjoint}
            options = EvaluateOptions(**given)
            parts = scored_edits(options), training_edits(options)
            found[gate, disjoint] = [
                sum(len(sample.visual_locality) for sample in part) for part in parts
            ]
    whole = found[None, False]
    assert whole[0] > 1 and whole[1] == 1 and found["learned", False] == whole
    assert found["learned", True] == [whole[0], 0]  # what is scored stays whole
    assert found[None, True][0] == found["none", True][0] == 0
