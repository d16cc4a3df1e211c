"""`attrib train`, `attrib edit` and `attrib grid`: one way from data to an edited answer."""

import json

import pytest
from conftest import picture, save_tiny

from attrib.cli.grid import pairs_in
from attrib.cli.train import layers_of
from editors.training.run import alone_in

TRAIN = ("--preset", "embedded", "--steps", 3, "--batch-size", 2,
         "--set", "d_adapter=16", "--set", "num_heads=2", "--set", "validate_every=3")  # fmt: skip


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A model, data of six rows, one of them without its picture, one with two."""
    folder = tmp_path_factory.mktemp("train")
    save_tiny(folder / "model")
    (folder / "data" / "vqa").mkdir(parents=True)
    (folder / "data" / "images").mkdir()
    for i in range(2):
        picture(seed=i).save(folder / "data" / "images" / f"{i}.png")
    rows = [
        {
            "src": f"What is {i}?", "pred": "a dog", "rephrase": "Which is it?", "alt": "red",
            "image": {1: "none.png", 2: ["0.png", "1.png"]}.get(i, "0.png"),
            "image_rephrase": "1.png",
            "loc": "nq question: who", "loc_ans": "she",
            "m_loc": "1.png", "m_loc_q": "Is it big?", "m_loc_a": "yes",
        }
        for i in range(6)
    ]  # fmt: skip
    (folder / "data" / "vqa" / "vqa_train.json").write_text(json.dumps(rows))
    return folder


def given(there):
    return ("--model", there / "model", "--data", there / "data", "--split", "vqa-train")


def test_an_editor_is_trained_and_its_edit_tried_saved_and_loaded(run, there, tmp_path):
    layers = ("--layers", "text:1 visual:0", "--gate", "none")
    code, out, err = run("train", *given(there), *TRAIN, *layers, "--out", "e")
    assert code == 0, err
    assert "trained 3 steps" in out
    assert "none.png" in err  # the row that could not be used
    settings = json.loads((tmp_path / "e" / "editor.json").read_text())
    assert settings["adapters"]["layers"] == {"text": [1], "visual": [0]}
    photos = ("--image", there / "data" / "images" / "0.png",
              "--image", there / "data" / "images" / "1.png")  # fmt: skip
    asked = ("--model", there / "model", "--editor", "e", *photos, "--prompt", "What is it?")
    code, out, err = run("edit", *asked, "--target", "red", "--rephrase", "Which?", "--save", "one")
    assert code == 4, err  # three steps teach nothing
    assert "the edit did not take: the edited model answers " in err and "not 'red'" in err
    assert out.count("before:") == 3
    assert " bytes" in out
    code, again, err = run("edit", *asked, "--rephrase", "Which?", "--load", "one")
    assert code == 4 and "not 'red'" in err
    assert again.splitlines()[:9] == out.splitlines()[:9]
    for flag, text in {"--target": " ", "--rephrase": "<image>", "--unrelated": ""}.items():
        code, _, err = run("edit", *asked, "--target", "red", flag, text)
        assert code == 2 and f"attrib: {flag}: " in err and err.count("\n") == 1, err


def test_the_same_command_goes_on_where_it_stopped(run, there, tmp_path):
    command = ("train", *given(there), *TRAIN, "--layers", "text:1", "--gate", "none", "--out", "e")
    code, out, err = run(*command, "--dry-run")
    assert code == 0, err
    assert "editor: dualedit at text 1; 3 steps" in out and "there already: none" in out
    assert not (tmp_path / "e").exists()
    with alone_in(tmp_path / "e"):
        code, _, err = run(*command)
    assert code == 3 and "e: another process is training in this folder; wait for it" in err
    assert run(*command)[0] == 0
    first = (tmp_path / "e" / "adapters.safetensors").read_bytes()
    code, out, _ = run(*command)
    assert code == 0
    assert "trained 3 steps" in out
    assert "it goes on from its last checkpoint" in run(*command, "--dry-run")[1]
    assert (tmp_path / "e" / "adapters.safetensors").read_bytes() == first
    (tmp_path / "e" / "adapters.safetensors").write_bytes(first[:-9])
    evaluated = ("evaluate", *given(there), "--editor", "e")
    code, _, err = run(*evaluated)
    assert code == 3 and "attrib: e: incomplete, damaged, or of another version: Saf" in err
    (tmp_path / "e" / "editor.json").write_text("{")
    code, _, err = run(*evaluated)
    assert code == 3 and "editor.json: not the record of an editor" in err


@pytest.mark.parametrize(("editor", "flags", "said"), [
    ("ft-l", (), "ft-l has nothing to train"),
    ("tp", ("--set", "num_memories=20", "--steps", 10), "tp has nothing to train"),
    ("mend", ("--set", "rank=4", "--steps", 2, "--batch-size", 2), "trained 2 steps"),
])  # fmt: skip
def test_baselines_know_where_to_edit_and_are_scored(run, there, editor, flags, said):
    (there / "data" / "vqa" / "vqa_eval.json").write_text(
        (there / "data" / "vqa" / "vqa_train.json").read_text()
    )
    code, out, err = run("train", *given(there), "--editor", editor, *flags, "--out", "e")
    assert code == 0, err
    assert said in out
    where = (*given(there)[:4], "--split", "vqa-eval", "--limit", 2, "--protocols", "paper")
    code, out, err = run("evaluate", *where, "--editor", "e", "--out", "scores")
    assert code in (0, 1), err  # one row has no picture
    assert editor in out and "edits used: 1" in out
    code, _, err = run("train", *given(there), "--editor", editor, "--gate", "learned")
    assert code == 2 and "takes no gate" in err


@pytest.mark.parametrize(("flags", "said"), [
    ((), "--layers: give the layers.json"),
    (("--layers", "nowhere"), "neither a file nor such as"),
    (("--layers", "text:99"), "there is no layer 99"),
    (("--layers", "text:4 visul:2"), "--layers: 'visul:2' in 'text:4 visul:2' is neither"),
    (("--layers", "text:1 visual:2-5"), "'visual:2-5' in 'text:1 visual:2-5' is neither"),
    (("--layers", "text:1,visual:0"), "'text:1,visual:0' is neither a file nor such as"),
    (("--layers", "text:1 text:1"), "text names a layer twice"),
    (("--layers", "text:1", "--editor", "rome"), "there is no 'rome'; there are visedit, dualedit"),
    (("--layers", "text:1", "--set", "speed=3"), "no setting 'speed'"),
    (("--layers", "text:1", "--set", "speed"), "expected name=value"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(run, there, flags, said):
    code, _, err = run("train", *given(there), *flags, "--out", "e")
    assert code == 2
    assert said in err


@pytest.mark.parametrize(("given", "layers"), [
    ("text:4 visual:2", {"text": [4], "visual": [2]}),
    ("text:4 visual:2,3 text:5", {"text": [4, 5], "visual": [2, 3]}),
])  # fmt: skip
def test_every_part_of_layers_counts(given, layers):
    assert layers_of(given, None) == layers


def test_a_grid_has_a_line_per_cell(run, there, tmp_path):
    (there / "data" / "vqa" / "vqa_eval.json").write_text(
        (there / "data" / "vqa" / "vqa_train.json").read_text()
    )
    few = ("--seeds", 1, "--text", "1", "--visual", "none", "--pairs", "1x0")
    command = (
        "grid", *given(there), *TRAIN, *few, "--test-split", "vqa-eval", "--out", "g",
        "--gate", "prompt_last",
    )  # fmt: skip
    code, out, err = run(*command, "--dry-run")
    assert code == 0 and "trainings: 2 of 3 steps, 0 of them done" in out, err
    assert not (tmp_path / "g").exists()
    code, out, err = run(*command)
    assert code == 0, err
    assert "2 of them done" in run(*command, "--dry-run")[1]
    assert "avg" in out
    # By cell, behind the gate and without it, five metrics and their mean.
    assert len((tmp_path / "g" / "grid.csv").read_text().splitlines()) == 1 + 2 * 2 * 6
    # What `attrib select --against` reads.
    scores = (tmp_path / "g" / "scores.csv").read_text().splitlines()
    assert scores[0] == "text,visual,seed,score"
    assert [line.rsplit(",", 1)[0] for line in scores[1:]] == ["1,,0", "1,0.0,0"]
    about = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert about["command"].startswith("attrib grid") and about["training"]["steps"] == 3
    assert about["train_edits"] + about["held_out"] == about["test_edits"] > about["held_out"] > 0
    # Another command in the folder adds its cells to the tables.
    more = [*command[: command.index("--text")], *command[command.index("--pairs") + 2 :]]
    code, out, err = run(*more, "--text", "none", "--visual", "0", "--pairs", "none")
    assert code == 0 and "cell 1 of 1" in err, err
    scores = (tmp_path / "g" / "scores.csv").read_text().splitlines()
    cells = [line.rsplit(",", 1)[0] for line in scores[1:]]
    assert sorted(cells) == [",0.0,0", "1.0,,0", "1.0,0.0,0"]


@pytest.mark.parametrize(("given", "pairs"), [
    ("none", []), ("1x0", [(1, 0)]), ("0,2x1,3", [(0, 1), (0, 3), (2, 1), (2, 3)]),
    ("1x1+5x6+1x1", [(1, 1), (5, 6)]),
])  # fmt: skip
def test_pairs_are_products_or_several_of_them(given, pairs):
    assert pairs_in(given) == pairs


@pytest.mark.parametrize(("flags", "said"), [
    (("--pairs", "1-0"), "--pairs: '1-0' is neither none nor such as"),
    (("--pairs", "axb"), "--pairs: 'a' is neither all nor none"),
    (("--text", "one"), "--text: 'one' is neither all nor none nor layers such as 0,2,4"),
    (("--visual", "77"), "there is no layer 77"),
    (("--editor", "visedit", "--text", "1"), "--text: visedit has no text adapter"),
    (("--editor", "visedit", "--pairs", "1x1"), "--pairs: visedit has adapters of one modality"),
    (("--editor", "rome"), "no 'rome' that writes at layers; there are visedit, dualedit"),
])  # fmt: skip
def test_cells_that_make_no_sense_are_refused_before_anything_runs(run, there, flags, said):
    rest = ("--test-split", "vqa-train", "--seeds", 1, "--out", "g")
    code, _, err = run("grid", *given(there), *TRAIN, *flags, *rest)
    assert code == 2
    assert said in err
    assert "inputs of the edits" not in err
