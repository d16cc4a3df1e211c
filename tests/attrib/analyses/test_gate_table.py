"""The gate study: what is compared with what, what it says, and what it leaves behind."""

import sys

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from conftest import picture, tiny_vlm

from attrib import cli, plots
from attrib.analyses.gate_roc import ANY, gate_roc
from attrib.analyses.gating import TOKENS, gate_similarity, measure_gate
from attrib.cli.analyse import command_options
from attrib.cli.outputs import default_folder
from attrib.data import EditData, EditRequest, EditSample
from attrib.errors import AttribError
from attrib.pipeline.observations import Gate, GateOptions
from attrib.report.summaries import gate_auc_table, summarize_gate
from attrib.results import Result

RELATIONS = {
    "text_generality": 1.0, "visual_generality": 0.9, "text_locality": 0.0,
    "visual_locality": 0.3, "same_image_same_kind": 0.8,
}  # fmt: skip


def sample(i, hard=True):
    """An edit with one input of each kind, and two near neighbours."""
    own, other = picture(seed=i), picture(seed=40 + i)
    ask = f"What is {'very ' * i}it?"
    near = [EditRequest(own, "Is it red?", "yes"), EditRequest(other, ask, "blue")] if hard else []
    return EditSample(
        f"e{i}",
        EditRequest(own, ask, "red"),
        text_generality=[EditRequest(own, "Name it.", "red")],
        visual_generality=[EditRequest(other, ask, "red")],
        text_locality=[EditRequest(None, "who wrote Emma?", "Jane Austen")],
        visual_locality=[EditRequest(other, "Where?", "here")],
        hard_locality=near,
        meta={"hard_types": ["same_image", "same_question"]} if hard else {},
    )


def batch_of(vlm, samples):
    return vlm.encode([s.request.image for s in samples], [s.request.prompt for s in samples])


def planted(layers=4, examples=30):
    """Similarities that tell generality apart from layer 2 on, by the last prompt token alone."""
    rng, rows = np.random.default_rng(0), []
    for i in range(examples):
        for layer in range(layers):
            for token in TOKENS:
                for relation, height in RELATIONS.items():
                    told = token == "prompt_last" and layer >= 2
                    value = 0.1 * rng.normal() + (height if told else 0.5)
                    if token == "visual_mean" and relation == "text_locality":
                        value = np.nan
                    rows.append((f"e{i}", layer, token, relation, 0, min(value, 1.0)))
    columns = ["example", "layer", "token", "relation", "item", "value"]
    return Result("gate", pd.DataFrame(rows, columns=columns), {"model": {"name": "planted"}})


@pytest.fixture(scope="module")
def study():
    result = planted()
    return result, gate_roc(result, resamples=200)


@pytest.fixture(scope="module")
def tiny():
    return tiny_vlm("llava")


@pytest.mark.parametrize("size", [3, 1])
def test_the_table_holds_the_similarity_of_each_input_to_its_edit(tiny, size):
    samples = [sample(0), sample(1, hard=False), sample(2)]
    parts = [samples[i : i + size] for i in range(0, 3, size)]
    tables = [measure_gate(tiny, batch_of(tiny, part), part)["gate"] for part in parts]
    table = pd.concat(tables, ignore_index=True)
    assert list(table.columns) == ["example", "layer", "token", "value", "relation", "item"]
    assert len(table) == (6 + 4 + 6) * tiny.num_layers * len(TOKENS)
    assert list(dict.fromkeys(table["example"])) == ["e0", "e1", "e2"]
    for relation, request in (
        ("same_question", samples[2].hard_locality[1]),
        ("text_locality", samples[2].text_locality[0]),
    ):
        one, two = (
            tiny.encode([r.image], [r.prompt], [r.target]) for r in (samples[2].request, request)
        )
        rows = table[(table["example"] == "e2") & (table["relation"] == relation)]
        for token in TOKENS:
            expected = gate_similarity(tiny, one, two, None, token)[0].numpy()
            here = rows.loc[rows["token"] == token, "value"]
            assert np.allclose(here, expected, atol=1e-5, equal_nan=True)


def test_hard_inputs_without_a_type_have_one_name_and_numbers(tiny):
    plain = sample(0)
    plain.meta.clear()
    table = measure_gate(tiny, batch_of(tiny, [plain]), [plain])["gate"]
    rows = table[table["relation"] == "hard_locality"]
    assert set(rows["item"]) == {0, 1}


def test_a_sample_without_inputs_is_refused(tiny):
    bare = EditSample("e", EditRequest(None, "What?", "red"))
    with pytest.raises(AttribError, match="needs generality and locality inputs"):
        measure_gate(tiny, batch_of(tiny, [bare]), [bare])


def test_the_summary_names_the_layer_the_hardest_inputs_and_the_leak(study):
    result, table = study
    said = summarize_gate(result, table, "prompt_last")
    assert "planted: a gate on the last prompt token of layer" in said
    layer = int(said.split("of layer ")[1].split()[0])
    assert layer >= 2 and "Hardest: same_image_same_kind, AUC 0." in said
    assert "Threshold and layer tuned on these" in said
    assert "which leaks the gold answer" in said
    leaking = summarize_gate(result, table, "target_last", 1)
    assert "last target token of layer 1" in leaking and "This token leaks" in leaking
    assert "The threshold tuned on" in leaking


def test_the_text_table_has_a_column_per_token_and_a_row_per_kind(study):
    lines = gate_auc_table(study[1], 3).splitlines()
    assert "target_last (leaks)" in lines[0] and lines[-1].startswith(ANY)
    (alone,) = [line for line in lines if line.startswith("text_locality")]
    assert alone.split()[1] == "-"  # text alone has no visual tokens


def test_curves_are_the_auc_of_the_table(study):
    _, table = study
    for ax, column, value, label in (
        (plots.gate_auc(table, "prompt_last"), "relation", ANY, "all of these"),
        (plots.gate_tokens(table), "token", "text_mean", "mean of the text tokens"),
    ):
        (line,) = [line for line in ax.get_lines() if line.get_label() == label]
        rows = table[(table[column] == value)]
        fixed = ("token", "prompt_last") if column == "relation" else ("relation", ANY)
        rows = rows[rows[fixed[0]] == fixed[1]]
        assert np.array_equal(line.get_ydata(), rows["auc"])
        looks = {(li.get_marker(), li.get_linestyle()) for li in ax.get_lines()[1:]}
        assert len(looks) == len(ax.get_lines()) - 1


def test_histograms_have_a_row_per_kind_and_a_description(study):
    ax = plots.gate_similarity(*study, "prompt_last", 3)
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[0] == "rephrased (T-Gen)" and len(names) == len(RELATIONS)
    said = plots.describe(ax)
    assert said.startswith("Histograms of") and "unrelated (M-Loc): median 0.3" in said
    assert "AUC" in said and "rephrased (T-Gen): median" in said
    assert [text.get_text() for text in ax.texts if text.get_text().startswith("published")]
    without = plots.gate_similarity(*study, "visual_mean", 3)
    assert len(without.get_yticklabels()) == len(RELATIONS) - 1
    assert "<desc>Histograms" in plots.svg(without)


@pytest.mark.usefixtures("unrendered")
def test_attrib_gate_writes_tables_figures_and_a_summary(monkeypatch, capsys, tmp_path):
    model, processor = tiny_models.build("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")

    def run(*more):
        arguments = ["gate", "--model", tmp_path / "model", "--limit", 3, "--out", tmp_path / "o"]
        monkeypatch.setattr(sys, "argv", ["attrib", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    code, out, err = run("--layer", 2, "--token", "text_mean")
    assert code == 0, err
    assert (
        "the mean of the text tokens of layer 2 separates generality" in out
        and "ROC-AUC, layer" in out
    )
    names = {path.name for path in (tmp_path / "o").iterdir()}
    figures = {"gate.png", "gate-tokens.svg", *(f"similarity-{token}.png" for token in TOKENS)}
    assert figures | {"result.parquet", "separation.csv", "manifest.json"} <= names
    result = Result.load(tmp_path / "o" / "result.parquet")
    assert {"same_question_other_image", "text_generality"} <= set(result.frame["relation"])
    assert result.examples == 3
    code, _, err = run("--prompt", "What?")
    assert code == 2 and "give --data" in err
    code, _, err = run("--layer", 4, "--out", tmp_path / "new")
    assert code == 2 and "--layer 4: the model has layers 0 to 3" in err
    assert not [*(tmp_path / "new").rglob("*.parquet")]  # before anything is computed


def test_another_layer_is_another_figure_of_the_same_run():
    GateCommand = command_options(Gate)
    one, two = GateCommand(), GateCommand(layer=2, token="target_last")
    assert default_folder("gate", one) == default_folder("gate", two)


def test_the_plan_counts_edits_and_other_inputs(tiny):
    (line,) = Gate(GateOptions()).plan(
        tiny, EditData("few", "", [sample(0), sample(1, hard=False)])
    )
    assert "12 forward passes: 2 edits, 10 other inputs" in line


def test_similarities_of_a_batch_do_not_depend_on_gradients_being_on(tiny):
    samples = [sample(0)]
    with torch.enable_grad():
        table = measure_gate(tiny, batch_of(tiny, samples), samples)["gate"]
    assert table["value"].notna().any()
