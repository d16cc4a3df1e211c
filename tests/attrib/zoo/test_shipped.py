"""The shipped backbones are what their cards say."""

import json

import pytest

from attrib.files import WEIGHTS
from attrib.loading import load
from attrib.stats import wilson
from attrib.zoo import BUILDERS
from attrib.zoo.evaluate import score

MEGABYTE = 10**6


@pytest.fixture(scope="module", params=tuple(BUILDERS))
def name(request):
    return request.param


def test_every_shipped_backbone_has_a_builder(name):
    assert name in BUILDERS


def test_its_files_are_small_and_safe(name):
    files = list((WEIGHTS / name).iterdir())
    assert max(f.stat().st_size for f in files) <= 12 * MEGABYTE
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md"}


def test_a_fresh_measurement_agrees_with_its_card(name):
    carded = json.loads((WEIGHTS / name / "measured.json").read_text())["scores"]
    count = 36
    fresh = {name: share for name, (share, _) in score(load(name), count).items()}
    for measurement in ("vqa", "vqa, other picture", "captions, exact"):
        low, high = wilson(round(carded[measurement][0] * count), count)
        assert low - 0.05 <= fresh[measurement] <= high + 0.05
    assert fresh["facts"] == pytest.approx(carded["facts"][0], abs=0.01)
    assert fresh["vqa"] > 0.75 > 0.4 > fresh["vqa, other picture"]  # it looks at the picture
