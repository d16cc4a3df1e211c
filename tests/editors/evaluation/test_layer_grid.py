"""The grid of layers: a cell is the editor trained there; done cells are not trained again."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import picture, tiny_vlm
from safetensors.torch import load_file
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.model.fingerprint import fingerprint
from editors import DualEdit, VisEdit, evaluate
from editors.evaluation.layer_grid import Cell, cells, grid
from editors.evaluation.metrics import FIVE
from editors.gating.gates import load_gate

CHANGES = {"steps": 2, "batch_size": 2, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.02}
PLACES = ([1], [0], [(1, 0)])


@pytest.fixture(scope="module")
def llava():
    vlm = tiny_vlm("llava")
    for parameter in vlm.model.parameters():
        parameter.requires_grad_(False)
    return vlm


@pytest.fixture(scope="module")
def done(llava, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("grid"), []
    preset = DualEdit.config_class.from_preset(llava, "embedded", **CHANGES)
    test = [s for s in samples(9) if s.id in ("edit-6", "edit-7", "edit-8")]
    wanted = cells(*PLACES, seeds=[0])
    frame = grid(DualEdit, llava, samples(6), test, wanted, out, preset, lines.append)
    return frame, out, preset, test, lines


def test_there_is_a_row_per_cell_and_metric(done):
    frame, *_, lines = done
    assert sum(line.startswith("cell ") for line in lines) == 3
    assert lines[0].startswith("text-1 visual-no seed-0: step 0 of 2: loss ")
    assert set(frame["metric"]) == {*FIVE, "hard", "avg"}
    first = frame[frame["text"].notna() & frame["visual"].isna()].set_index("metric")["value"]
    assert first["avg"] == pytest.approx(first[list(FIVE)].mean())


@pytest.mark.parametrize(("editor", "gate", "end_token"), [
    (DualEdit, "prompt_last", False), (VisEdit, "none", False), (DualEdit, "none", True),
])  # fmt: skip
def test_a_cell_scores_as_its_editor_does_when_it_is_evaluated(
    editor, gate, end_token, llava, done, tmp_path
):
    test, out, changes = done[3], tmp_path / "grid", {**CHANGES, "end_token": end_token}
    preset = editor.config_class.from_preset(llava, "embedded", **changes)
    frame = grid(editor, llava, samples(6), test, [Cell(None, 0, 0)], out, preset, print, gate)
    trained = editor.train(
        llava, samples(6), layers={"visual": [0]}, out=tmp_path / "one", gate="none",
        preset="embedded", **changes,
    )  # fmt: skip
    for name in ("last.safetensors", "best.safetensors"):  # the same weights, at every step
        there, here = (
            load_file(one / name) for one in (out / Cell(None, 0, 0).name, tmp_path / "one")
        )
        torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-4)
    assert (trained.sites[0].adapter.mapper is not None) == (editor is VisEdit)
    gates = {"none": None} | ({} if gate == "none" else {gate: load_gate(out / f"gate-{gate}")})
    assert set(frame["gate"]) == set(gates)
    for name, fitted in gates.items():
        result = evaluate(llava, trained.with_gate(fitted), test, ("paper",))
        rows = result.frame[result.frame["editor"] == editor.name]
        means = rows[rows["protocol"] == "paper"].groupby("metric")["value"].mean()
        cell = frame[frame["gate"] == name].set_index("metric")["value"]
        for metric in FIVE:
            assert cell[metric] == pytest.approx(means[metric], abs=1e-6), (name, metric)


def test_done_cells_are_scored_behind_another_gate_without_training(llava, done, tmp_path):
    frame, out, preset, test, _ = done
    out = shutil.copytree(out, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/best.safetensors")}
    lines, place = [], [Cell(None, 0, 0)]
    again = grid(DualEdit, llava, samples(6), test, place, out, preset, lines.append, "prompt_last")
    assert len(lines) == 1
    ungated = again[again["gate"] == "none"].set_index("metric")["value"]
    assert ungated.equals(frame[frame["text"].isna()].set_index("metric")["value"])
    gated = again[again["gate"] == "prompt_last"].set_index("metric")["value"]
    assert (gated >= ungated)[["t_loc", "m_loc", "hard"]].all()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = [Cell(1, 1, 0)]  # there is no such cell yet that could tell
    with pytest.raises(AttribError, match="was fitted otherwise: samples: "):
        grid(DualEdit, llava, samples(5), test, other, out, preset, print, "prompt_last")
    with pytest.raises(AttribError, match="was fitted otherwise: layer: 0 there, 1 now"):
        grid(DualEdit, llava, samples(6), test, place, out, preset, print, "prompt_last", 1)
    (out / "gate-prompt_last" / "origin.json").unlink()  # as an earlier version left it
    ids = [one.id for one in samples(6)]
    record = {"model": fingerprint(llava), "samples": ids}
    (out / "gate-prompt_last.json").write_text(json.dumps(record))
    same = grid(DualEdit, llava, samples(6), test, place, out, preset, print, "prompt_last")
    assert same.equals(again)
    with pytest.raises(AttribError, match="another model or layer, or of other edits"):
        grid(DualEdit, llava, samples(6), test, place, out, preset, print, "prompt_last", 1)


def test_scores_behind_one_gate_stay_when_a_cell_is_scored_behind_another(llava, done, tmp_path):
    _, out, preset, test, _ = done
    out, rows = shutil.copytree(out, tmp_path / "copy"), (samples(6), test)
    place = [Cell(None, 0, 0)]
    before = grid(DualEdit, llava, *rows, place, out, preset, print, "prompt_last")
    after = grid(DualEdit, llava, *rows, place, out, preset, print, "sequence_last")
    assert set(after["gate"]) == {"none", "prompt_last", "sequence_last"}
    old = after[after["gate"] != "sequence_last"].reset_index(drop=True)
    assert old.equals(before)


def test_the_gate_of_a_grid_reads_the_layer_that_is_asked_for(llava, done, tmp_path):
    _, out, preset, test, _ = done
    out = shutil.copytree(out, tmp_path / "copy")
    grid(DualEdit, llava, samples(6), test, [Cell(None, 0, 0)], out, preset, print, "learned", 1)
    assert load_gate(out / "gate-learned").layers == (1,)


def test_done_cells_are_read_and_other_settings_refused(llava, done):
    frame, out, preset, test, _ = done
    lines = []
    again = grid(
        DualEdit, llava, samples(6), test, cells(*PLACES, seeds=[0]), out, preset, lines.append
    )
    assert not lines
    assert again.equals(frame)
    with pytest.raises(AttribError, match="other settings, data or model"):
        grid(
            DualEdit,
            llava,
            samples(6),
            test,
            [Cell(1, None, 0)],
            out,
            preset.changed(steps=3),
            print,
        )
    with pytest.raises(AttribError, match="no cells"):
        grid(DualEdit, llava, samples(6), test, [], out, preset, print)


def test_edits_that_a_cell_is_scored_on_do_not_select_its_weights(llava, done, tmp_path):
    """Otherwise a cell's scores would be those of the weights that are best on the test edits."""
    _, out, preset, *_ = done
    place, other = Cell(1, 0, 0), [s for s in samples(12) if s.id in ("edit-9", "edit-10")]
    grid(DualEdit, llava, samples(6), other, [place], tmp_path, preset, print)
    of = [folder / place.name for folder in (out, tmp_path)]
    curves = [json.loads((one / "training.json").read_text())["progress"]["curve"] for one in of]
    assert curves[0] == curves[1]
    one, two = (load_file(folder / "best.safetensors") for folder in of)
    torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_a_grid_of_an_earlier_version_goes_on_as_it_began(llava, done, tmp_path):
    _, out, preset, test, _ = done
    out, place = shutil.copytree(out, tmp_path / "copy"), Cell(1, 0, 0)
    for file in (path for name in ("cell.json", "training.json") for path in out.glob(f"*/{name}")):
        record = json.loads(file.read_text())
        assert record["identity"].pop("held_out") == 1
        file.write_text(json.dumps(record))
    lines, rows = [], (samples(6), test)
    grid(DualEdit, llava, *rows, cells(*PLACES, seeds=[0]), out, preset, lines.append)
    assert not lines
    more = Cell(0, None, 0)
    grid(DualEdit, llava, *rows, [more], out, preset, print)
    identities = [
        json.loads((out / c.name / "cell.json").read_text())["identity"] for c in (place, more)
    ]
    assert identities[0] == identities[1] and "held_out" not in identities[0]


def test_cells_of_earlier_versions_that_lack_the_end_token_are_refused(llava, done, tmp_path):
    _, out, preset, test, _ = done
    out, place = shutil.copytree(out, tmp_path / "copy"), [Cell(None, 0, 0)]
    ended = preset.changed(end_token=True)
    file = out / place[0].name / "cell.json"
    record = json.loads(file.read_text())
    assert "trained_with_end_token" not in record["identity"]  # cells without it are read as ever
    record["identity"]["training"] = {
        k: v for k, v in json.loads(json.dumps(ended.training_options)).items() if k != "seed"
    }
    file.write_text(json.dumps(record))
    with pytest.raises(AttribError, match="an earlier version, without the end token"):
        grid(DualEdit, llava, samples(6), test, place, out, ended, print)


def test_edits_that_the_model_cannot_read_are_set_aside(llava, done):
    frame, out, preset, test, _ = done
    bad = replace(test[0], id="bad", request=EditRequest(picture(), "What is <image>?", "red"))
    lines, wanted = [], cells(*PLACES, seeds=[0])
    rows = [[*some, bad] for some in (samples(6), test)]
    again = grid(DualEdit, llava, *rows, wanted, out, preset, lines.append)
    assert not lines and again.equals(frame)


def test_the_model_is_left_as_it_was(llava, done):
    assert done
    fresh = type(llava)(*__import__("tiny_models").build("llava"), name="llava")
    for name, value in fresh.model.state_dict().items():
        assert torch.equal(llava.model.state_dict()[name], value), name
