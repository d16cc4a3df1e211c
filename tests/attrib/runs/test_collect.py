"""Collecting: every good sample is measured, every bad one is named, nothing else is lost."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from conftest import picture, tiny_vlm
from transformers import LlavaForConditionalGeneration

from attrib.analyses.attention import measure_attention
from attrib.data import EditData, EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from attrib.runs.collect import collect
from attrib.runs.manifest import provenance_of

IMAGE = picture()


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch):
    """Memory runs out in pretence only: collecting garbage would take most of the time."""
    monkeypatch.setattr("attrib.runs.collect.free_memory", lambda: None)


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


def sample(name, image=IMAGE, prompt="What is it?"):
    return EditSample(name, EditRequest(image, prompt, "red"), meta={"row": int(name[1:])})


def names(batch, samples):
    """A measurement that only says what it was given."""
    assert batch.size == len(samples)
    return {"names": pd.DataFrame({"example": [s.id for s in samples], "value": 1.0})}


def broken_image():
    raise AttribError("'x.jpg': no such file")


def test_all_samples_are_measured_once_and_in_order(vlm):
    samples = [sample(f"e{i}") for i in range(7)]
    done = collect(vlm, samples, lambda _, b, s: names(b, s), batch_size=3)
    assert done.tables["names"]["example"].tolist() == [s.id for s in samples]
    assert done.used == samples and not done.quarantined


def test_results_do_not_depend_on_the_batch_size(vlm):
    samples = [sample(f"e{i}", prompt=f"What is {'very ' * i}it?") for i in range(5)]
    one, three = (collect(vlm, samples, measure_attention, batch_size=n) for n in (1, 3))
    a, b = (done.tables["attention"] for done in (one, three))
    assert a.drop(columns="value").equals(b.drop(columns="value"))
    assert np.allclose(a["value"], b["value"], atol=1e-5)


def test_bad_images_and_prompts_are_set_aside_by_name(vlm):
    bad = [sample("e2", image=broken_image), sample("e4", prompt="An <image> inside")]
    samples = [sample("e0"), sample("e1"), bad[0], sample("e3"), bad[1], sample("e5")]
    done = collect(vlm, samples, lambda _, b, s: names(b, s), batch_size=4)
    assert done.tables["names"]["example"].tolist() == ["e0", "e1", "e3", "e5"]
    first, second = done.quarantined
    assert (first.file, first.row, first.field) == ("e2", 2, "image") and "x.jpg" in first.reason
    assert (second.row, second.field) == (4, "prompt") and "<image>" in second.reason


def test_numbers_that_break_down_are_set_aside_with_their_layer(vlm):
    def measure(_vlm, _batch, samples):
        rows = [
            {"example": s.id, "layer": layer, "value": np.nan if s.id == "e1" and layer else 1.0}
            for s in samples
            for layer in range(3)
        ]
        return {"numbers": pd.DataFrame(rows)}

    done = collect(vlm, [sample("e0"), sample("e1")], measure)
    assert set(done.tables["numbers"]["example"]) == {"e0"} and [s.id for s in done.used] == ["e0"]
    assert "no finite number from layer 1 on" in done.quarantined[0].reason


def test_a_model_that_breaks_down_is_told_with_its_first_bad_layer():
    broken = VLM(*tiny_models.build("llava"))
    with torch.no_grad():
        broken.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        SetupError, match="first layer of the model with an output that is not finite is 2"
    ):
        collect(broken, [sample("e0")], measure_attention)


def test_a_healthy_model_is_not_blamed(vlm):
    def measure(_vlm, _batch, samples):
        rows = [{"example": s.id, "layer": 0, "value": np.inf} for s in samples if s.id == "e1"]
        return {"numbers": pd.DataFrame([{"example": "e0", "layer": 0, "value": 1.0}, *rows])}

    done = collect(vlm, [sample("e0"), sample("e1")], measure)
    assert "the output of every layer of the model is finite" in done.quarantined[0].reason


def test_a_sample_that_the_measurement_refuses_is_found_by_halving(vlm):
    sizes = []

    def measure(_vlm, batch, samples):
        sizes.append(len(samples))
        if any(s.id in ("e2", "e7") for s in samples):
            raise AttribError("no such\nword")
        return names(batch, samples)

    samples = [sample(f"e{i}") for i in range(8)]
    done = collect(vlm, samples, measure, batch_size=8)
    assert done.tables["names"]["example"].tolist() == ["e0", "e1", "e3", "e4", "e5", "e6"]
    assert [(q.row, q.field, q.reason) for q in done.quarantined] == [
        (2, "request", "no such word"),
        (7, "request", "no such word"),
    ]
    assert len(sizes) < 2 * 8


def test_what_is_refused_of_every_sample_is_raised_as_it_was(vlm):
    def measure(_vlm, _batch, _samples):
        raise AttribError("layer 99: expected 0 to 3")

    with pytest.raises(AttribError, match="layer 99") as error:
        collect(vlm, [sample("e0"), sample("e1")], measure)
    assert not isinstance(error.value, SetupError)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 97.12 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(vlm, caplog, error):
    sizes = []

    def measure(_vlm, batch, samples):
        sizes.append(len(samples))
        if len(samples) > 2:
            raise error
        return names(batch, samples)

    samples = [sample(f"e{i}") for i in range(16)]
    done = collect(vlm, samples, measure, batch_size=8)
    assert done.tables["names"]["example"].tolist() == [s.id for s in samples]
    assert sizes == [8, 4] + [2] * 8 and not done.quarantined
    assert caplog.text.count("out of memory with 8 samples a pass") == 1


def test_a_sample_that_does_not_fit_alone_is_set_aside(vlm):
    def measure(_vlm, batch, samples):
        if any(s.id == "e1" for s in samples):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return names(batch, samples)

    done = collect(vlm, [sample(f"e{i}") for i in range(3)], measure)
    assert [(q.row, q.field) for q in done.quarantined] == [(1, "memory")]
    assert [s.id for s in done.used] == ["e0", "e2"]


def test_other_errors_are_ours_and_pass_through(vlm):
    def measure(_vlm, _batch, _samples):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        collect(vlm, [sample("e0")], measure)


def test_fingerprints_tell_models_apart_and_not_copies(tmp_path):
    other, copy = VLM(*tiny_models.build("llava")), VLM(*tiny_models.build("llava"))
    copy.model.load_state_dict(other.model.state_dict())
    assert fingerprint(other) == fingerprint(copy)
    copy.model.save_pretrained(tmp_path)  # writes architectures and dtype into its config
    saved = VLM(LlavaForConditionalGeneration.from_pretrained(tmp_path), copy.processor)
    assert fingerprint(other) == fingerprint(copy) == fingerprint(saved)
    saved.model.half()
    assert fingerprint(other) != fingerprint(saved)
    with torch.no_grad():
        copy.layers[0].self_attn.q_proj.weight.mul_(1.001)
    assert fingerprint(other) != fingerprint(copy)
    copy.model.load_state_dict(other.model.state_dict())
    copy.model.config.text_config.rms_norm_eps *= 2
    assert fingerprint(other) != fingerprint(copy)


def test_missing_kinds_are_no_break_down(vlm):
    done = collect(vlm, [sample("e0", image=None)], measure_attention)
    assert done.tables["attention"]["value"].isna().any() and not done.quarantined


def test_nothing_left_to_work_on_is_said(vlm):
    with pytest.raises(SetupError, match=r"none of 2 rows can be used; the first: .*x\.jpg"):
        collect(vlm, [sample("e0", broken_image), sample("e1", broken_image)], measure_attention)
    with pytest.raises(SetupError, match="the data is empty"):
        collect(vlm, [], measure_attention)


def test_a_batch_of_none_is_refused(vlm):
    with pytest.raises(AttribError, match="expected 1 or more, got 0"):
        collect(vlm, [sample("e0")], measure_attention, batch_size=0)


def test_provenance_is_json_and_says_what_was_used(vlm):
    data = EditData("some", "test", [sample("e0"), sample("e1", broken_image)])
    done = collect(vlm, data, measure_attention)
    made = provenance_of(vlm, data, {"key": "argmax"}, 3, done)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["examples"], made["quarantined"], made["seed"]) == (1, 1, 3)
    assert made["model"]["name"] == "llava" and made["model"]["dtype"] == "float32"
    assert made["versions"]["torch"]
