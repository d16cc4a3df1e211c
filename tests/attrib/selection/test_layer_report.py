"""The report as a file, as a guard against other models, as sentences and as a picture."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import planted_layers as planted
import pytest
from conftest import tiny_vlm

import attrib
from attrib import plots
from attrib.errors import AttribError
from attrib.report.selection_summary import summarize_regret, summarize_selection
from attrib.selection import (
    GridEvaluation,
    LayerReport,
    evidence_table,
    gather,
    select_layers,
)
from attrib.selection.report import model_of, same_model


@pytest.fixture(scope="module")
def report():
    return select_layers(planted.evidence())


def test_the_public_names_are_these():
    assert attrib.LayerReport is LayerReport and attrib.select_layers is select_layers


def test_what_is_saved_is_loaded(report, tmp_path):
    path = report.save(tmp_path / "deep" / "layers.json")
    assert LayerReport.load(path) == report
    plain = json.loads(path.read_text())
    assert plain["layers"] == report.layers and plain["num_layers"] == planted.LAYERS
    assert plain["provenance"]["model"]["fingerprint"] == planted.MODEL["fingerprint"]
    assert plain["choices"]["text"]["onset"]["ranking"][0] == planted.STEP - 1
    assert "geometric mean" in plain["meanings"]["consensus"]
    assert [table["analysis"] for table in plain["provenance"]["tables"]] == [
        "contributions", "sweep", "sweep", "patching"
    ]  # fmt: skip


def test_saving_the_same_twice_gives_the_same_bytes(report, tmp_path):
    files = [report.save(tmp_path / name).read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"layout": "attrib layers 1"}', "\x00"])
def test_a_file_that_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "layers.json"
    path.write_text(text)
    with pytest.raises(AttribError, match=r"not a layers\.json"):
        LayerReport.load(path)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path):
    with pytest.raises(AttribError, match="attrib select"):
        LayerReport.load(tmp_path / "none.json")


def of_model(report, vlm, **changes):
    model = model_of(vlm) | changes
    return replace(report, num_layers=model["layers"],
                   provenance={**report.provenance, "model": model})  # fmt: skip


def test_layers_of_this_model_pass_and_of_another_are_refused_naming_both(report):
    llava, blip2 = tiny_vlm("llava"), tiny_vlm("blip2_opt")
    of_model(report, llava).check(llava)
    of_model(report, llava, name="elsewhere").check(llava)  # the same weights in another folder
    with pytest.raises(AttribError) as error:
        of_model(report, llava).check(blip2)
    assert "llava" in str(error.value) and "blip2_opt" in str(error.value)
    assert "attrib select --model blip2_opt" in str(error.value)
    with pytest.raises(AttribError, match="12 layers"):
        report.check(llava)


def test_other_weights_of_one_architecture_are_another_model(report):
    vlm = tiny_vlm("llava")
    before = of_model(report, vlm)
    weight = next(vlm.model.parameters()).data
    kept = weight.clone()
    weight += 1
    with pytest.raises(AttribError, match="were selected for llava"):
        before.check(vlm)
    weight.copy_(kept)
    before.check(vlm)


def test_another_number_format_of_one_checkpoint_is_the_same_model():
    full = {"name": "a", "class": "X", "layers": 4, "dtype": "float32", "fingerprint": "1",
            "weights_sha256": "s"}  # fmt: skip
    half = {**full, "name": "b", "dtype": "bfloat16", "fingerprint": "2"}
    assert same_model(full, half) and not same_model(full, {**half, "weights_sha256": "t"})
    assert not same_model(full, {**full, "fingerprint": "2"})
    unknown = {**half, "weights_sha256": None}
    assert not same_model(full, unknown) and same_model({**full, "name": "b"}, unknown)


def test_the_text_shows_every_rule(report):
    told = str(report)
    assert told.startswith("layers of planted (12 layers, float32, digest a1b2c3d4) by consensus")
    assert all(rule in told for rule in ("onset", "sensitivity", "patching", "consensus"))


def test_the_summary_names_layers_their_stability_and_the_rules(report):
    visual, text = summarize_selection(report).split("\n")
    layer = report.layers["visual"][0]
    start = f"Edit the visual tokens at the output of layer {layer}, selected by consensus from 20"
    assert visual.startswith(start) and "select the same layer (95 %: " in visual
    assert "disagree by up to 3 layers: onset 6, sensitivity 3, patching 4; rank" in visual
    assert text.startswith("Edit the text tokens at the output of layer")


def test_the_summary_says_what_is_unclear():
    flat = np.full(planted.LAYERS, 0.3)
    unsure = select_layers([planted.sweep("text", flat, noise=0.1)], "sensitivity")
    summary = summarize_selection(unsure)
    assert "No clear choice: " in summary and "No layer can be selected for the visual" in summary
    assert "(sensitivity of visual left out: no evidence 'noise visual'" in summary
    one = select_layers([planted.contributions(examples=1)])
    assert "One example: no confidence interval." in summarize_selection(one)


def test_regret_stands_beside_that_of_the_fixed_choices():
    row = {"text": 1, "visual": 2, "score": 88.0, "best_text": 2, "best_visual": 2, "best": 90.0,
           "regret": 2.0, "low": 1.5, "high": 2.5, "seeds": 3}  # fmt: skip
    fixed = row | {"regret": 7.0}
    table = pd.DataFrame([{"pick": "consensus", **row}, {"pick": "middle layer", **fixed}])
    evaluation = GridEvaluation({"both": table}, pd.DataFrame(), {"both": 9})
    summary = summarize_regret(evaluation, "consensus")
    assert "layers of consensus, text 1, visual 2, score 88.00" in summary
    assert "regret 2.00 (3 seeds, 1.50-2.50)" in summary and "middle layer 7.00" in summary
    assert "cannot evaluate it" in summarize_regret(evaluation, "pointing")


def test_the_picture_marks_the_chosen_layers(report):
    ax = plots.selection(report, evidence_table(gather(planted.evidence())))
    axes = ax.figure.axes
    assert len(axes) == 8
    for column, modality in enumerate(("text", "visual")):
        title = axes[column].get_title(loc="left")
        assert title == f"Rule scores, {modality} tokens"
        for one in axes[column::2]:
            marks = [li for li in one.get_lines() if len(set(li.get_xdata())) == 1]
            assert report.layers[modality][0] in {li.get_xdata()[0] for li in marks}
    assert "consensus picks layer" in plots.describe(ax) and "<desc>Line charts" in plots.svg(ax)


def test_rules_differ_by_more_than_colour(report):
    ax = plots.selection(report, evidence_table(gather(planted.evidence())))
    lines = [li for li in ax.get_lines() if not li.get_label().startswith(("_", "chosen"))]
    assert len({(li.get_marker(), li.get_linestyle()) for li in lines}) == len(lines) == 4


def test_the_picture_shows_what_there_is():
    tables = [planted.sweep("visual")]
    report = select_layers(tables, "sensitivity", number=2)
    ax = plots.selection(report, evidence_table(gather(tables)))
    assert len(ax.figure.axes) == 4 and not any(
        label.startswith("chosen") for label in ax.get_legend_handles_labels()[1]
    )
