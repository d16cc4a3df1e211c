"""Layer selection and its report from Python: the same runs as the commands, in one call."""

import pytest
from conftest import picture, tiny_vlm

from attrib.data import EditRequest, EditSample
from attrib.pipeline.report import report
from attrib.pipeline.select import EVIDENCE, select
from attrib.selection import LayerReport


@pytest.fixture(scope="module")
def llava():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def samples():
    return [
        EditSample(f"e{i}", EditRequest(picture(60, 40, seed=i), f"What is number {i}?", "a cat"))
        for i in range(4)
    ]


@pytest.mark.usefixtures("unrendered")
def test_layers_are_selected_from_samples_and_the_same_call_continues(llava, samples, tmp_path):
    first = select(llava, samples, tmp_path / "o", rule="onset")
    assert LayerReport.load(tmp_path / "o" / "layers.json").layers == first.layers
    made = {path.parent.name for path in tmp_path.glob("o/*/result.parquet")}
    assert made <= set(EVIDENCE) and {"contributions", "sweep-text", "attention"} <= made
    assert select(llava, samples, rule="onset").choices == first.choices


def test_the_report_is_written_from_samples(llava, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("attrib.plots.svg", lambda *_given, **_options: "<svg></svg>")
    study = report(llava, samples, tmp_path, pictures=2)
    assert len(study.cards) == 2 and study.missing.keys() <= {"patching"}
    assert "Edit " in (tmp_path / "report.html").read_text()
