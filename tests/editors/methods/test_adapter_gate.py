"""Gates of adapters that write an end token: they compare answers without it."""

import json

import pytest
import torch
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.errors import SetupError
from editors import DualEdit
from editors.base import encode_requests
from editors.gating.gated_editor import gate_features
from editors.gating.gates import STATE
from editors.gating.training import fit_cosine_gate

QUICK = {"steps": 1, "batch_size": 2, "d_adapter": 16, "num_heads": 2, "end_token": True}
LAYERS = {"text": [1], "visual": [1]}


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def trained(llava, tmp_path_factory):
    out = tmp_path_factory.mktemp("leaking")
    how = {"layers": LAYERS, "validation": samples(6)[4:], "gate": "sequence_last"}
    return DualEdit.train(llava, samples(4), out=out, **how, **QUICK), out


def test_a_gate_that_reads_answers_is_fitted_to_answers_as_they_are_scored(llava, trained):
    fitted = fit_cosine_gate(llava, samples(4), 1, "sequence_last")
    gate = trained[0].gate
    assert gate.threshold == pytest.approx(fitted.threshold, abs=1e-6)
    assert gate.record["calibration"]["kept"] == fitted.record["calibration"]["kept"]


def test_an_edit_is_compared_by_the_token_by_which_its_scored_request_is(llava, trained):
    editor, request = trained[0], samples(1)[0].request
    (memory,) = editor.edit(llava, request).memories
    (scored,) = gate_features(llava, editor.gate, encode_requests(llava, [request]))
    (ended,) = gate_features(llava, editor.gate, editor.encode(llava, request))
    torch.testing.assert_close(memory.gate[STATE], scored[STATE])
    assert not torch.allclose(memory.gate[STATE], ended[STATE], atol=1e-3)


def test_what_adapters_attend_to_keeps_the_end_token(llava, trained):
    editor, request = trained[0], samples(1)[0].request
    (memory,) = editor.edit(llava, request).memories
    (plain,) = editor.with_gate(None).edit(llava, request).memories
    for key, signal in memory.signals.items():
        assert torch.equal(signal.states, plain.signals[key].states)


def test_a_threshold_of_an_earlier_version_is_refused_until_training_runs_again(llava, tmp_path):
    again = {"layers": LAYERS, "validation": samples(6)[4:], "gate": "sequence_last", **QUICK}
    made = DualEdit.train(llava, samples(4), out=tmp_path, **again)
    file = tmp_path / "gate" / "gate.json"
    record = json.loads(file.read_text())
    del record["record"]["targets"]  # as written before
    file.write_text(json.dumps(record))
    with pytest.raises(SetupError, match="run the same training again"):
        DualEdit.load(tmp_path, llava)
    DualEdit.train(llava, samples(4), out=tmp_path, **again)
    assert DualEdit.load(tmp_path, llava).gate.threshold == made.gate.threshold
    record["record"]["calibration"] = {"rule": "given"}  # as published: nothing was fitted
    file.write_text(json.dumps(record))
    assert DualEdit.load(tmp_path, llava).gate.threshold == made.gate.threshold
