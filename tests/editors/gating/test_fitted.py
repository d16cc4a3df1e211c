"""A gate is fitted once into a folder, and never taken for one that was fitted otherwise."""

import json
from contextlib import contextmanager

import pytest
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.errors import AttribError
from editors.gating import fitted
from editors.gating.fitted import ORIGIN, fit_once, is_fitted
from editors.gating.gates import CosineGate, load_gate, save_gate
from editors.gating.training import GateTraining

EDITS = samples(4)


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def unread():
    raise AssertionError("the edits of a gate that is there are read")


def test_a_gate_is_fitted_once_and_its_edits_are_not_read_again(vlm, tmp_path):
    folder, source = tmp_path / "gate", {"data": "scenes-vqa"}
    fit_once(folder, "prompt_last", vlm, lambda: EDITS, 1, source=source)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    fit_once(folder, "prompt_last", vlm, unread, 1, source=source)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(AttribError, match='data: "scenes-vqa" there, "other" now'):
        fit_once(folder, "prompt_last", vlm, unread, 1, source={"data": "other"})


@pytest.mark.parametrize(("other", "told"), [
    ({"layer": 0}, "layer: 1 there, 0 now"),
    ({"seed": 3}, "seed: 0 there, 3 now"),
    ({"name": "sequence_last"}, 'gate: "prompt_last" there, "sequence_last" now'),
    ({"samples": samples(3)}, "samples: "),
    ({"threshold": 0.5}, "threshold: null there, 0.5 now"),
    ({"settings": GateTraining(steps=1)}, "steps: null there, 1 now"),
])  # fmt: skip
def test_a_gate_that_was_fitted_otherwise_is_refused(vlm, tmp_path, other, told):
    given = {"name": "prompt_last", "vlm": vlm, "samples": EDITS, "layer": 1}
    fit_once(tmp_path / "gate", **given)
    with pytest.raises(AttribError, match="holds a gate that was fitted otherwise") as error:
        fit_once(tmp_path / "gate", **{**given, **other})
    assert told in str(error.value)


def test_a_gate_of_another_model_is_refused(vlm, tmp_path):
    fit_once(tmp_path / "gate", "prompt_last", vlm, EDITS, 1)
    with pytest.raises(AttribError, match="model: "):
        fit_once(tmp_path / "gate", "prompt_last", tiny_vlm("blip2_opt"), EDITS, 1)


def test_a_gate_of_an_earlier_version_has_no_record_and_is_taken(vlm, tmp_path):
    folder = save_gate(tmp_path / "gate", CosineGate(0, 0.25))
    fit_once(folder, "prompt_last", vlm, unread, 1)
    assert load_gate(folder).threshold == 0.25 and not (folder / ORIGIN).exists()


def test_a_record_without_its_gate_is_written_anew(vlm, tmp_path):
    folder = tmp_path / "gate"
    fit_once(folder, "prompt_last", vlm, EDITS, 1)
    (folder / "gate.json").unlink()  # a process was stopped before it wrote the gate
    fit_once(folder, "prompt_last", vlm, EDITS, 0)
    assert load_gate(folder).layers == (0,)
    assert json.loads((folder / ORIGIN).read_text())["layer"] == 0


def test_a_process_that_waited_takes_the_gate_of_the_one_that_fitted(vlm, tmp_path, monkeypatch):
    folder, waited = tmp_path / "gate", []

    @contextmanager
    def locked(path):
        waited.append(path)
        save_gate(folder, CosineGate(1, 0.25))
        yield True

    monkeypatch.setattr(fitted, "locked", locked)
    assert not is_fitted(folder)
    fit_once(folder, "prompt_last", vlm, unread, 1)
    assert waited == [tmp_path / ".gate.lock"] and load_gate(folder).threshold == 0.25
