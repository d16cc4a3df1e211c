"""The shipped backbones are what their cards say."""

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

import editors
from attrib.files import WEIGHTS
from attrib.loading import load
from attrib.stats import wilson
from attrib.zoo import BUILDERS
from attrib.zoo.evaluate import score

MEGABYTE = 10**6
PRETRAINED = Path(editors.__file__).parent / "pretrained"
ABSOLUTE = re.compile(r'"(~?/\w+/|[A-Za-z]:[/\\])')


@pytest.fixture(scope="module", params=tuple(BUILDERS))
def name(request):
    return request.param


def test_every_shipped_backbone_has_a_builder(name):
    assert name in BUILDERS


def test_its_files_are_small_and_safe(name):
    files = list((WEIGHTS / name).iterdir())
    assert max(f.stat().st_size for f in files) <= 12 * MEGABYTE
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md"}


def test_no_file_that_ships_names_a_path_of_the_machine_that_made_it():
    texts = {path: path.read_text(encoding="utf-8")
             for folder in (WEIGHTS, PRETRAINED) for path in folder.rglob("*.json")}  # fmt: skip
    for path in (*WEIGHTS.rglob("*.safetensors"), *PRETRAINED.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            texts[path] = " ".join((file.metadata() or {}).values())
    assert len(texts) > 20 and ABSOLUTE.search('"_name_or_path": "/home/models"')
    assert not [path for path, text in texts.items() if ABSOLUTE.search(text)]
    for path in WEIGHTS.glob("*/config.json"):
        text = json.loads(path.read_text(encoding="utf-8"))["text_config"]
        assert text.get("_name_or_path") in (None, "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_fresh_measurement_agrees_with_its_card(name):
    carded = json.loads((WEIGHTS / name / "measured.json").read_text())["scores"]
    count = 36
    fresh = {name: share for name, (share, _) in score(load(name), count).items()}
    for measurement in ("vqa", "vqa, other picture", "captions, exact"):
        low, high = wilson(round(carded[measurement][0] * count), count)
        assert low - 0.05 <= fresh[measurement] <= high + 0.05
    assert fresh["facts"] == pytest.approx(carded["facts"][0], abs=0.01)
    assert fresh["vqa"] > 0.75 > 0.4 > fresh["vqa, other picture"]  # it looks at the picture
