"""Edits for use elsewhere: edited models as plain folders, and uploads, which nothing sends."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import examples, picture, save_tiny
from explored import edit as hidden_edit
from safetensors import safe_open

import attrib
from attrib.cli.publish import files_to_push
from attrib.data import EditRequest
from attrib.errors import AttribError, SetupError
from attrib.model.fingerprint import fingerprint
from editors import FTL, FTV
from editors.base import SequentialEdit, WeightEdit
from editors.io import save_edit
from editors.weights.export import edited_weights, export_model
from editors.weights.low_rank import LowRankEdit
from editors.weights.neurons import NeuronEdit
from editors.weights.passes import LowRankUpdate


@pytest.fixture(scope="module")
def tiny():
    return attrib.load("tiny-llava", verify=False)


@pytest.mark.parametrize("method", [FTL, FTV])
def test_an_exported_model_is_the_edited_one_and_the_original_stays(method, tiny, tmp_path):
    request = EditRequest(picture(96, 96), "What color is it? The answer is:", "green")
    edit = method.train(tiny, (), out=tmp_path / "editor", steps=3).edit(tiny, request)
    batch = tiny.encode([request.image], [request.prompt])
    before, config = (fingerprint(tiny), tiny.logits(batch)), tiny.model.config.to_json_string()
    with edit.applied(tiny):
        wanted = tiny.logits(batch)
    assert not torch.equal(wanted, before[1])
    folder = export_model(tiny, edit, tmp_path / "out")
    assert fingerprint(tiny) == before[0] and torch.equal(tiny.logits(batch), before[1])
    assert tiny.model.config.to_json_string() == config
    loaded = attrib.load(folder)
    assert torch.equal(loaded.logits(loaded.encode([request.image], [request.prompt])), wanted)
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.keys()


def moved(vlm, part, by):
    name, weight = next((n, p) for n, p in vlm.model.named_parameters() if part in n)
    return WeightEdit({name: weight.data + by})


def test_edits_in_sequence_leave_the_last_values(tiny):
    one, two = moved(tiny, "layers.3.mlp", 0.1), moved(tiny, "layers.3.mlp", 0.2)
    other = moved(tiny, "layers.4.mlp", 0.3)
    (name,) = two.weights
    found = edited_weights(tiny, SequentialEdit([one, other, two]))
    assert set(found) == {name, *other.weights} and torch.equal(found[name], two.weights[name])


def low_rank(vlm, part, seed, size=0.05):
    name, weight = next((n, p) for n, p in vlm.model.named_parameters() if part in n)
    made = torch.Generator().manual_seed(seed)
    left, right = (size * torch.randn(1, 3, width, generator=made) for width in weight.shape)
    return LowRankEdit({name: LowRankUpdate(left, right)})


def test_low_rank_updates_are_exported_as_the_weights_with_which_the_model_answers_alike(
    tiny, tmp_path
):
    """Those of mend and ke, alone and on top of others: W, then W + one, then W + one + two."""
    parts = [low_rank(tiny, "layers.8.mlp.down_proj", seed, 0.2) for seed in range(2)]
    parts.insert(0, moved(tiny, "layers.8.mlp.down_proj", 0.01))
    edit = SequentialEdit([parts[0], SequentialEdit(parts[1:])])
    batch = tiny.encode([picture(96, 96)], ["What color is it? The answer is:"])
    with torch.no_grad(), edit.applied(tiny):
        wanted = tiny.logits(batch)
    folder = export_model(tiny, edit, tmp_path / "out")
    loaded = attrib.load(folder, verify=False)
    torch.testing.assert_close(loaded.logits(batch), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, tiny.logits(batch), atol=1e-2)
    (name,) = json.loads((folder / "attrib_edit.json").read_text())["parameters"]
    weight = tiny.model.get_parameter(name)
    updates = sum(part.updates[name].dense[0] for part in parts[1:])
    torch.testing.assert_close(loaded.model.get_parameter(name), weight + 0.01 + updates)
    with pytest.raises(AttribError, match="the edit is of another model"):
        edited_weights(tiny, LowRankEdit({"no.weight": parts[1].updates[name]}))


def test_edits_that_are_no_weights_say_what_to_ship_instead(tiny, tmp_path):
    for edit, told in (
        (hidden_edit(), "HiddenEdit: .* ship the editor's folder and the saved edit"),
        (NeuronEdit(2, None), "NeuronEdit: the edit adds neurons to layer 2.*needs no editor"),
    ):
        with pytest.raises(AttribError, match=told):
            export_model(tiny, edit, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tiny, tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(SetupError, match="exists already; give a new folder"):
        export_model(tiny, moved(tiny, "layers.3.mlp", 0.1), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_the_current_folder_may_be_the_new_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inode = Path().stat().st_ino
    export_model(tiny, moved(tiny, "layers.3.mlp", 0.1), ".")
    assert Path("attrib_edit.json").is_file() and Path().stat().st_ino == inode
    assert not list(Path().glob(".*")) and [f.name for f in tmp_path.iterdir()] == ["here"]


def test_an_offloaded_model_is_refused(tmp_path):
    save_tiny(tmp_path / "model")
    parts = {"model": "cpu", "lm_head": "disk"}
    vlm = attrib.load(tmp_path / "model", verify=False, device_map=parts)
    edit = WeightEdit({"lm_head.weight": torch.zeros(1)})
    with pytest.raises(SetupError, match="parts of the model are offloaded"):
        export_model(vlm, edit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the commands


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A tiny model, an edit of its weights, and an editor's folder."""
    folder = tmp_path_factory.mktemp("published")
    save_tiny(folder / "model")
    vlm = attrib.load(folder / "model", verify=False)
    (folder / "editor").mkdir()
    save_edit(moved(vlm, "layers.2.mlp", 0.1), folder / "editor" / "one.safetensors", vlm)
    FTL.train(vlm, (), out=folder / "editor")
    (folder / "editor" / "last.safetensors").write_bytes(b"a checkpoint")
    (folder / "editor" / "photo.png").write_bytes(b"a photo")
    return folder


def test_a_saved_edit_is_exported_by_a_command(run, there, tmp_path):
    edit = there / "editor" / "one.safetensors"
    code, out, err = run("export-model", "--model", there / "model", "--edit", edit, "--out", "o")
    assert code == 0 and "attrib.load('o')" in out, err
    vlm = attrib.load(there / "model", verify=False)
    batch = vlm.encode(*examples())
    with moved(vlm, "layers.2.mlp", 0.1).applied(vlm):
        wanted = vlm.logits(batch)
    assert torch.equal(attrib.load(tmp_path / "o").logits(batch), wanted)
    code, _, err = run("export-model", "--model", "no-model", "--edit", edit, "--out", "o")
    assert code == 3 and "o exists already; give a new folder" in err  # the model is not loaded
    code, _, err = run("export-model", "--model", there / "model", "--edit", edit)
    assert code == 2 and "--edit and --out" in err
    code, _, err = run("export-model", "--edit", there / "editor", "--out", "p")
    assert code == 2 and "from --prompt, --target and --image" in err


class Hub:
    """What stands in for the hub: it keeps what it was told."""

    def __init__(self, error=None, private=True):
        self.calls, self.error, self.private = {}, error, private

    def create_repo(self, repo_id, **given):
        self.calls["create_repo"] = (repo_id, given)
        if self.error:
            raise self.error

    def repo_info(self, repo_id):
        return SimpleNamespace(id=repo_id, private=self.private)

    def upload_folder(self, **given):
        self.calls["upload_folder"] = given
        return SimpleNamespace(commit_url=f"https://hub/{given['repo_id']}")


@pytest.fixture
def hub(monkeypatch):
    def put(**given):
        made = Hub(**given)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
        return made

    return put


def test_a_folder_is_uploaded_privately_without_checkpoints_and_photos(run, there, hub):
    made = hub()
    code, out, err = run("push", there / "editor", "me/edits")
    assert code == 0 and "https://hub/me/edits" in out and "2 files" in err and "private" in err
    assert made.calls["create_repo"] == ("me/edits", {"private": True, "exist_ok": True})
    given = made.calls["upload_folder"]
    assert given["allow_patterns"] == ["editor.json", "one.safetensors"]
    made = hub(private=False)
    code, _, err = run("push", there / "editor", "me/edits", "--public")
    assert code == 0 and "(public)" in err
    assert made.calls["create_repo"][1]["private"] is False


def test_what_is_hidden_or_in_a_hidden_folder_stays(tmp_path):
    names = ("editor.json", "a/b[1].safetensors", ".secret.json", ".cache/x/one.json",
             "a/.git/b.json", "a/last.safetensors")  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [file.relative_to(tmp_path).as_posix() for file in files_to_push(tmp_path)]
    assert found == ["a/b[1].safetensors", "editor.json"]


def test_a_repository_that_is_private_is_not_said_to_be_public(run, there, hub):
    made = hub(private=True)
    code, _, err = run("push", there / "editor", "me/edits", "--public")
    assert code == 2 and "me/edits exists and is private; leave --public out" in err
    assert "(public)" not in err and "upload_folder" not in made.calls


def test_a_public_repository_is_not_written_to_by_accident(run, there, hub):
    made = hub(private=False)
    code, _, err = run("push", there / "editor", "me/edits")
    assert code == 2 and "me/edits exists and is public; give --public" in err
    assert "upload_folder" not in made.calls


def denied(status):
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda: denied(401), "not logged in; run `hf auth login`"),
        (lambda: denied(403), "this account may not write there"),
        (lambda: ConnectionError("unreachable"), "no network: ConnectionError: unreachable"),
        (lambda: ValueError("odd"), "push to me/edits: ValueError: odd"),
    ],
)
def test_an_upload_that_fails_names_the_cause(run, there, hub, error, told):
    hub(error=error())
    code, out, err = run("push", there / "editor", "me/edits")
    assert code == 3 and out == "" and told in err


def test_what_cannot_be_uploaded_is_refused_before_the_hub_is_asked(run, there, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, code, told in (
        (("push",), 2, "attrib push FOLDER USER/NAME"),
        (("push", there / "editor", "no name"), 2, "is no repository"),
        (("push", "gone", "me/edits"), 3, "gone: no such folder"),
        (("push", "empty", "me/edits"), 3, "empty: no editor"),
    ):
        found, _, err = run(*arguments)
        assert found == code and told in err
