"""Which settings a model and its edits get."""

from dataclasses import replace

import pytest
from conftest import tiny_vlm
from tiny_edits import samples

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from editors import DualEdit
from editors.methods.adapter_objective import AdapterConfig
from editors.methods.ke import KEConfig
from editors.methods.mend import MENDConfig

SHORT, LONG = "red", "a blue square in the north"


def edits(*targets):
    found = []
    for sample, target in zip(samples(len(targets)), targets, strict=True):
        request = EditRequest(sample.request.source, sample.request.prompt, target)
        found.append(replace(sample, request=request))
    return found


@pytest.mark.parametrize(
    ("small", "wide", "targets", "name"),
    [
        (True, True, [], "tuned-small"),
        (True, True, [SHORT, SHORT, LONG], "tuned-small"),
        (True, True, [SHORT, LONG, LONG], "tuned-small-phrases"),
        (False, True, [SHORT], "tuned-small-wide"),
        (False, False, [LONG], "default"),
    ],
)
def test_auto_goes_by_the_width_of_the_model_and_the_length_of_answers(
    small, wide, targets, name, monkeypatch
):
    vlm = tiny_vlm("llava")
    monkeypatch.setattr("editors.training.config.SMALL", vlm.d_model + small)
    monkeypatch.setattr("editors.methods.adapter_objective.WIDE", vlm.d_model + wide)
    assert AdapterConfig.from_preset(vlm, "auto", edits(*targets)) == AdapterConfig.from_preset(
        vlm, name
    )


def test_phrases_differ_from_single_words_in_what_is_seen_and_in_what_others_weigh():
    vlm = tiny_vlm("llava")
    words, phrases = (AdapterConfig.from_preset(vlm, n) for n in ("embedded", "embedded_phrases"))
    assert phrases == words.changed(signal_window=8, locality=0.1, steps=600, learning_rate=5e-3)


def test_a_window_of_no_position_is_refused(tmp_path):
    vlm = tiny_vlm("llava")
    with pytest.raises(AttribError, match="signal_window: no 0; expected at least 1"):
        DualEdit.train(vlm, samples(3), layers={"text": [1]}, out=tmp_path, signal_window=0)


def test_options_and_values_of_earlier_versions_are_understood():
    vlm = tiny_vlm("llava")
    old = MENDConfig.from_preset(vlm, "embedded", best_by="right", rate_speed=2.0)
    assert (old.best_by, old.rate_lr_multiplier) == ("accuracy", 2.0)
    assert KEConfig.from_preset(vlm, price_speed=5.0).lagrange_lr_multiplier == 5.0
    assert AdapterConfig.from_preset(vlm, mapper_target="gentle").mapper_target == "0.1-sigma"
    record = {"settings": {**MENDConfig().settings(), "rank": 3}, "trained": {
        "training": {"steps": 7, "best_by": "right"}, "weights": {"locality": 0.5, "influence": 0.1}
    }}  # fmt: skip
    record["settings"]["rate_speed"] = record["settings"].pop("rate_lr_multiplier")
    loaded = MENDConfig.from_record(record)
    assert (loaded.rank, loaded.steps, loaded.best_by, loaded.locality) == (3, 7, "accuracy", 0.5)


def test_a_config_is_its_training_its_loss_and_its_own_settings():
    config = AdapterConfig(d_adapter=16, steps=3, influence=0.5, end_token=True)
    parts = (
        config.training_options, config.loss_options, config.settings(), config.gate_options,
    )  # fmt: skip
    assert sorted(name for part in parts for name in part) == sorted(
        {*AdapterConfig.model_fields} - {"micro_batch"}  # the result does not depend on it
    )
    assert parts[0]["steps"] == 3 and parts[1]["influence"] == 0.5 and parts[2]["d_adapter"] == 16
