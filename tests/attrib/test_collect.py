"""Collecting: every good sample is measured, every bad one is named, nothing else is lost."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import picture, tiny_vlm

from attrib.collect import collect, provenance
from attrib.data import EditData, EditRequest, EditSample
from attrib.errors import AttribError, CannotStart
from attrib.measures import measure_attention

IMAGE = picture()


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


def test_missing_kinds_are_no_break_down(vlm):
    done = collect(vlm, [sample("e0", image=None)], measure_attention)
    assert done.tables["attention"]["value"].isna().any() and not done.quarantined


def test_nothing_left_to_work_on_is_said(vlm):
    with pytest.raises(CannotStart, match=r"none of 2 rows can be used; the first: .*x\.jpg"):
        collect(vlm, [sample("e0", broken_image), sample("e1", broken_image)], measure_attention)
    with pytest.raises(CannotStart, match="the data is empty"):
        collect(vlm, [], measure_attention)


def test_a_batch_of_none_is_refused(vlm):
    with pytest.raises(AttribError, match="expected 1 or more, got 0"):
        collect(vlm, [sample("e0")], measure_attention, batch_size=0)


def test_provenance_is_json_and_says_what_was_used(vlm):
    data = EditData("some", "test", [sample("e0"), sample("e1", broken_image)])
    done = collect(vlm, data, measure_attention)
    made = provenance(vlm, data, done, {"key": "argmax"}, 3)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert (made["examples"], made["quarantined"], made["seed"]) == (1, 1, 3)
    assert made["model"]["name"] == "llava" and made["model"]["dtype"] == "float32"
    assert made["versions"]["torch"]
