"""`--edit` of the analyses of one photo: both sides, the gate, files of the edited side."""

import json

import pytest
import torch
from conftest import picture, save_tiny

import attrib
from attrib.results import Result
from editors import FTL
from editors.base import WeightEdit
from editors.io import save_edit

ASKED = ("--prompt", "What is it?")
FILE = __file__  # a file, as a saved edit is


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A tiny model, a photo, an editor, and a saved edit of weights."""
    folder = tmp_path_factory.mktemp("edited")
    save_tiny(folder / "model")
    picture().save(folder / "photo.png")
    vlm = attrib.load(folder / "model", verify=False)
    FTL.train(vlm, attrib.data.load("scenes-vqa", "test", limit=2), out=folder / "ft-l", steps=2)
    name, weight = next((n, p) for n, p in vlm.model.named_parameters() if "layers.2.mlp" in n)
    edit = WeightEdit({name: weight.data + 0.1 * torch.ones_like(weight)})
    save_edit(edit, folder / "one.safetensors", vlm)
    return folder


def on(there):
    return ("--model", there / "model", "--image", there / "photo.png", *ASKED)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["contributions", "heatmap", "attention", "sweep"])
def test_both_sides_are_shown_and_the_edited_one_is_kept(run, there, tmp_path, name):
    edit = ("--edit", there / "one.safetensors")
    code, out, err = run(name, *on(there), *edit, "--out", "o")
    assert code == 0, err
    for side in ("before the edit: ", "after the edit:  "):
        assert f"{side}the model's answer" in out
    assert "gate: none; the edit applies to every input" in out
    assert " before " in out and " after" in out
    (folder,) = (tmp_path / "o").glob("edited-*")
    before, after = (Result.load(f / "result.parquet") for f in (tmp_path / "o", folder))
    assert len(before.frame) == len(after.frame)
    assert not before.frame["value"].equals(after.frame["value"])
    assert (folder / "differences.csv").read_text().count("\n") > 1
    made = json.loads((folder / "manifest.json").read_text())
    assert made["edit"]["edit"].endswith("one.safetensors") and len(made["edit"]["sha256"]) == 64
    # The unedited side is the plain command's, in the same folder.
    assert run(name, *on(there), "--out", "o")[0] == 0
    plain = Result.load(tmp_path / "o" / "result.parquet")
    assert plain.frame.equals(before.frame) and "edit" not in plain.provenance


@pytest.mark.usefixtures("unrendered")
def test_an_editor_makes_the_edit_now_and_its_answer_may_be_the_key(run, there):
    edit = ("--edit", there / "ft-l", "--target", "blue")
    code, out, err = run("contributions", *on(there), *edit, "--out", "o")
    assert code == 0 and "editing with" in err and "after the edit" in out
    code, out, err = run("contributions", *on(there), *edit, "--key", "gold", "--out", "p")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("attention", *ASKED, "--target", "y"), "--target: attention reads no answer"),
        (("attention", *ASKED, "--load", "x"), "--load: it belongs to an edit"),
        (("sweep", "--edit", "e", "--limit", "2"), "--edit: one photo is shown before and after"),
        (("heatmap", *ASKED, "--edit", "e", "--load", "l", "--target", "t"), "the edit of --load"),
        (("contributions", *ASKED, "--target", "y"), "--target is read with --key gold"),
        (("patching", *ASKED, "--edit", "e"), "No such option: --edit"),
        (("heatmap", *ASKED, "--edit", FILE, "--load", "l"), "--load: --edit is a saved edit"),
        (("heatmap", *ASKED, "--edit", FILE, "--edit-prompt", "q"), "the edit of --edit has its q"),
        (("heatmap", *ASKED, "--edit", FILE, "--target", "t"), "--target: the edit of --edit"),
        (("explore", *ASKED, "--edit", FILE, "--target", "t"), "--target: the edit of --edit"),
        (("heatmap", *ASKED, "--edit", "e", "--load", "l", "--edit-prompt", "q"), "--edit-prompt:"),
        (("heatmap", *ASKED, "--edit", "e"), "--target: give the new answer"),
    ],
)
def test_an_edit_that_would_be_ignored_is_refused(run, arguments, told):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and told in err


def test_a_missing_edit_is_named_before_the_model_is_loaded(run, there):
    for name in ("attention", "explore"):
        edit = ("--edit", "nowhere", "--target", "x", "--out", "o")
        code, _, err = run(name, "--model", "no-model", *ASKED, *edit)
        assert code == 3 and "nowhere: no trained editor" in err
    code, _, err = run("attention", *on(there), "--edit", there / "ft-l", "--out", "o")
    assert code == 2 and "--target: give the new answer" in err
