"""Which settings a model and its edits get."""

from dataclasses import replace

import pytest
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from editors import DualEdit
from editors.training.config import PRESETS, preset_for

SHORT, LONG = "red", "a blue square in the north"


def edits(*targets):
    found = []
    for sample, target in zip(samples(len(targets)), targets, strict=True):
        request = EditRequest(sample.request.source, sample.request.prompt, target)
        found.append(replace(sample, request=request))
    return found


@pytest.mark.parametrize(
    ("small", "targets", "name"),
    [
        (True, [], "embedded"),
        (True, [SHORT, SHORT, LONG], "embedded"),
        (True, [SHORT, LONG, LONG], "embedded_phrases"),
        (False, [LONG], "published"),
    ],
)
def test_auto_goes_by_the_width_of_the_model_and_the_length_of_answers(
    small, targets, name, monkeypatch
):
    vlm = tiny_vlm("llava")
    monkeypatch.setattr("editors.training.config.SMALL", vlm.d_model + small)
    assert preset_for(vlm, "auto", edits(*targets)) == PRESETS[name].changed()


def test_phrases_differ_from_single_words_in_what_is_seen_and_in_what_others_weigh():
    words, phrases = PRESETS["embedded"], PRESETS["embedded_phrases"]
    assert phrases == words.changed(signal_window=8, locality=0.1, steps=600, learning_rate=5e-3)


def test_a_window_of_no_position_is_refused(tmp_path):
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match="signal_window: no 0; expected 1 or more"):
        DualEdit.train(vlm, samples(3), layers={"text": [1]}, out=tmp_path, signal_window=0)
