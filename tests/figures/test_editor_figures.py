"""Figures of editors: they say what a live editor is, and their verdicts follow the numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from committed_figures import FIGURES, FOLDERS, committed
from conftest import picture, tiny_vlm

from attrib.data.samples import EditData, EditRequest, EditSample
from attrib.errors import SetupError
from editors import DualEdit, VisEdit
from editors.gating.gates import CosineGate
from editors.methods.adapter_objective import AdapterConfig
from figures import DEFAULT, Measured, Setting, find
from figures.dualedit_figure_3 import follows_gate
from figures.dualedit_figure_5 import cell_table, choose_gate
from figures.editor_structure import effects, sizes, structure
from figures.estimates import all_hold, estimate, proportion
from figures.frames import floats, select_rows, strings
from figures.gate_scores import gate_aucs
from figures.heatmap_before_after import CONTROL, REPEAT, REQUEST, evenly_spaced
from figures.scene_objects import ObjectCells, truth_scores
from figures.trained_editor import find_upwards, load_editor
from figures.visedit_figure_4 import moved_share

NEVER, ALWAYS = 2.0, -2.0  # thresholds that no cosine reaches, and that all do


def sample(i=0):
    request = EditRequest(picture(seed=i), "What is red?", "blue thing")
    return EditSample(
        id=str(i),
        request=request,
        text_generality=[EditRequest(picture(seed=i), "Tell me what is red.", "blue thing")],
        visual_generality=[EditRequest(picture(seed=5 + i), "What is red?", "blue thing")],
        text_locality=[EditRequest(None, "nq question: who wrote it?", "Emma")],
        visual_locality=[EditRequest(picture(seed=9 + i), "Where is it?", "on top")],
        hard_locality=[EditRequest(picture(seed=i), "Where is it?", "below")],
        meta={"kind": "color", "pred": "red", "hard_types": ["same_image_other_kind"]},
    )


def editor(kind, layers, threshold=None, **options):
    vlm = tiny_vlm("llava")
    config = AdapterConfig(d_adapter=16, num_heads=2, init="published", **options)
    gate = None if threshold is None else CosineGate(0, threshold)
    return vlm, kind(vlm, config, layers, config.build(vlm, layers, seed=0), gate)


@pytest.fixture(scope="module")
def open_editor():
    return editor(DualEdit, {"text": [1], "visual": [0]}, ALWAYS)


def test_the_structure_is_that_of_the_editor_at_hand(open_editor):
    vlm, live = open_editor
    tables = structure(live)
    sites = tables["sites"].set_index("key")
    assert dict(sites["layer"]) == {"visual-0": 0, "text-1": 1}
    assert set(sites["d_adapter"]) == {16} and set(sites["d_model"]) == {vlm.d_model}
    assert sites["parameters"].sum() == sum(p.numel() for p in live.module.parameters())
    assert tables["gate"]["threshold"].tolist() == [ALWAYS]
    _, bare = editor(VisEdit, {"visual": [1]}, mapper=True, signal="both")
    tables = structure(bare)
    assert tables["gate"].empty and tables["sites"]["mapper"].tolist() == [1]
    assert tables["sites"]["d_signal"].tolist() == [2 * vlm.d_model]


def test_what_is_watched_is_what_the_gate_allows(open_editor):
    vlm, live = open_editor
    watched = effects(vlm, live, [sample()])
    assert (watched["open"] == 1).all() and (watched["output_changed"] == 1).all()
    assert (watched["other_positions"] == 0).all() and (watched["text-1"] == 1).all()
    seen = watched["input"] != "text_locality"
    assert (watched["visual-0"][seen] == 1).all() and watched["visual-0"][~seen].isna().all()
    shut = effects(vlm, live.with_gate(CosineGate(0, NEVER)), [sample()])
    assert (shut[["open", "output_changed", "text-1", "other_positions"]] == 0).all(axis=None)
    for found in (watched, shut):
        assert follows_gate(found, ["visual-0", "text-1"]).all()


def test_an_adapter_that_does_not_follow_the_gate_is_noticed(open_editor):
    vlm, live = open_editor
    watched = effects(vlm, live, [sample()])
    figure = find("dualedit_figure_3")
    tables = structure(live) | {"effects": watched}
    about = {"n": 1} | sizes(vlm, live, sample())
    assert figure.verdict(Measured(tables, {}, about)).holds is True
    for change in ({"text-1": 0.5}, {"open": 0}, {"other_positions": 1}):
        wrong = Measured(tables | {"effects": watched.assign(**change)}, {}, about)
        assert figure.verdict(wrong).holds is False


def test_a_visual_adapter_that_moves_text_alone_is_noticed():
    vlm, live = editor(VisEdit, {"visual": [1]}, mapper=True)
    watched = effects(vlm, live, [sample()])
    terms = ["reliability", "generality", "locality", "mapper_up", "mapper_down"]
    losses = pd.DataFrame({"term": [*terms, "mapper_attribution"], "weight": 1.0})
    tables = structure(live) | {"effects": watched, "losses": losses}
    verdict = find("visedit_figure_2").verdict
    assert verdict(Measured(tables, {}, {"n": 1})).holds is True
    for wrong in ({"effects": watched.assign(output_changed=1)}, {"losses": losses[:3]}):
        assert verdict(Measured(tables | wrong, {}, {"n": 1})).holds is False


@pytest.mark.parametrize("layers", [{"text": [1], "visual": [0]}, {"text": [1], "visual": [1]}])
def test_the_drawing_names_every_adapter_and_its_layer(layers):
    vlm, live = editor(DualEdit, layers, 0.25)
    about = {"model": "tiny"} | sizes(vlm, live, sample())
    measured = Measured(structure(live), {}, about)
    drawn = find("dualedit_figure_3").render(measured, DEFAULT)
    said = " ".join(text.get_text() for ax in drawn.axes for text in ax.texts)
    for modality, (layer,) in layers.items():
        assert f"{modality} adapter\nafter layer {layer}" in said
    assert "0.25" in said and f"{vlm.num_layers - 1}" in said
    assert f"after layer {layers['visual'][0]}" in find("dualedit_figure_3").alt(measured)


def test_estimates_hold_the_truth_and_shares_stay_between_0_and_1():
    values = np.random.default_rng(0).normal(1.0, 1.0, 400)
    found = estimate(np.append(values, np.nan))
    assert found.n == 400 and found.low < values.mean() < found.high
    assert found.above(0) is True and found.above(2) is False and found.above(found.mean) is None
    assert estimate(np.array([np.nan])).above(0) is None and estimate(np.ones(1)).n == 1
    sure = proportion(np.ones(20, bool))
    assert sure.mean == sure.high == 1 and 0.8 < sure.low < 1
    assert proportion(np.zeros(20, bool)).low == 0
    # Wilson's interval for 8 of 10, as textbooks have it.
    some = proportion(np.arange(10) < 8)
    assert (round(some.low, 3), round(some.high, 3)) == (0.490, 0.943)
    assert [all_hold(True, True), all_hold(True, None), all_hold(None, False)] == [
        True,
        None,
        False,
    ]


def gate_values(last, visual):
    relations = ["text_generality", "visual_generality", "visual_locality", "same_image"]
    rows = [
        {"example": str(i), "relation": relation, "item": 0, "visual_mean": visual(relation, i),
         "text_mean": 0.5, "prompt_last": last(relation, i), "target_last": i / 10}
        for i in range(10) for relation in relations
    ]  # fmt: skip
    values = pd.DataFrame(rows)
    return Measured(
        {"values": values, "separation": gate_aucs(values, seed=0)}, {}, {"n": 10, "layer": 1}
    )


def test_a_gate_that_tells_has_an_auc_of_1_and_leads_the_others():
    def told(relation, i):
        return float("generality" in relation) + i / 100

    measured = gate_values(told, lambda _relation, i: (i * 7 % 10) / 10)
    table = measured.tables["separation"].set_index(["gate", "against"])
    assert table.loc[("prompt_last", "unrelated image"), "auc"] == 1
    assert table.loc[("text_mean", "near neighbour"), "auc"] == 0.5
    assert np.isnan(table.loc[("prompt_last", "unrelated text"), "auc"])
    verdict = find("dualedit_figure_4").verdict
    assert verdict(measured).holds is True
    assert verdict(gate_values(lambda _relation, i: i / 10, told)).holds is False


def grid(best):
    rows = [
        {"text": t, "visual": v, "seed": seed, "metric": "rel", "value": value}
        for (t, v), value in {(5, 6): 0.5, (0, 0): 0.6, best: 0.99}.items()
        for seed in (0, 1)
    ]
    single = {"text": 3, "visual": np.nan, "seed": 0, "metric": "rel", "value": 1.0}
    cells = cell_table(pd.DataFrame([*rows, single]), edits=200)
    about = {"num_layers": 10, "pair_of_paper": [5, 6], "model": "m", "test_edits": 200,
             "gate": "none"}  # fmt: skip
    return Measured({"cells": cells}, {}, about | {"selected": [0, 0]})


def test_the_grid_is_judged_by_the_pair_as_deep_as_the_papers():
    verdict = find("dualedit_figure_5").verdict
    assert verdict(grid((5, 6))).holds is True
    assert verdict(grid((2, 1))).holds is False
    cells = grid((2, 1)).tables["cells"]
    assert len(cells) == 3 and (cells["seeds"] == 2).all()
    assert ((cells["low"] < cells["value"]) & (cells["value"] < cells["high"])).all()
    missing = replace(grid((2, 1)), tables={"cells": cells[cells["text"] != 5]})
    assert verdict(missing).holds is None


@pytest.mark.parametrize("model", FOLDERS)
def test_the_committed_cells_are_those_of_the_committed_grid(model):
    measured = committed("dualedit_figure_5", model)
    folder = FIGURES / "tables" / f"grid-{model}"
    edits = measured.about["test_edits"]
    cells = cell_table(choose_gate(pd.read_csv(folder / "grid.csv"))[1], edits)
    kept = measured.tables["cells"]
    pd.testing.assert_frame_equal(kept, cells[[*kept]], check_dtype=False, rtol=1e-4)
    if (folder / "grid.json").is_file():
        made = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
        assert (made["command"], made["test_edits"]) == (measured.about["grid"], edits)


def test_cells_that_were_not_trained_stay_empty():
    figure, measured = find("dualedit_figure_5"), grid((2, 1))
    drawn = figure.render(measured)
    shown = np.ma.filled(drawn.axes[0].collections[0].get_array(), np.nan)
    assert np.isfinite(shown).sum() == 3 and shown[2, 1] == pytest.approx(99)
    assert {text.get_text() for text in drawn.axes[0].texts} == {"50.0", "60.0", "99.0"}


def test_of_many_layers_only_those_of_trained_pairs_are_shown():
    sparse = replace(grid((2, 1)), about={**grid((2, 1)).about, "num_layers": 30})
    axes = find("dualedit_figure_5").render(sparse).axes[0]
    labels = [[text.get_text() for text in ticks] for ticks in
              (axes.get_yticklabels(), axes.get_xticklabels())]  # fmt: skip
    assert labels == [["0", "2", "5"], ["0", "1", "6"]]
    shown = np.ma.filled(axes.collections[0].get_array(), np.nan)
    assert np.isfinite(shown).sum() == 3 and shown[1, 1] == pytest.approx(99)
    assert "3 of 900 pairs" in axes.get_title(loc="left") + axes.get_title()


def test_cells_are_shown_behind_the_gate_where_there_is_one():
    table = pd.DataFrame({"gate": ["none", "learned"], "value": [0.25, 0.75]})
    assert choose_gate(table)[1]["value"].tolist() == [0.75]
    assert choose_gate(table[table["gate"] == "none"])[1]["value"].tolist() == [0.25]


def test_a_map_on_the_object_asked_about_tells_it():
    on = np.zeros((2, 9), bool)
    on[0, :2], on[1, 2:4] = True, True
    found = truth_scores(np.where(on[0], 1.0, 0.0), ObjectCells(on, 0))
    assert found == {"on_asked": 1, "on_others": 0, "elsewhere": 0, "auc": 1, "auc_objects": 1,
                     "mass": 1}  # fmt: skip
    other = truth_scores(np.where(on[1], 1.0, 0.0), ObjectCells(on, 0))
    assert other["auc_objects"] == 0 and other["mass"] == 0
    assert all(np.isnan(value) for value in truth_scores(np.ones(9), None).values())


MAPS = ("request", "other picture", "unrelated image", "other question")


def mapper(asked, background):
    rows = [
        {"example": str(i), "kind": "color", "map": name, "mean": 0.1 if "un" in name else 0.3,
         "auc": 0.5 + asked - background + i / 100, "auc_objects": 0.5 + asked, "agreement": 0.3}
        for i in range(20) for name in MAPS
    ]  # fmt: skip
    scores = pd.DataFrame(rows)
    scores.loc[scores["map"] == "other question", "auc_objects"] = 0.5
    return Measured({"scores": scores}, {}, {"n": 20})


def test_a_mapper_holds_where_it_finds_the_object_and_follows_the_prompt():
    for name in ("visedit_figure_3", "visedit_figure_8"):
        assert find(name).verdict(mapper(0.3, 0.0)).holds is True
    assert find("visedit_figure_3").verdict(mapper(0.1, 0.4)).holds is False
    lost = mapper(0.3, 0.0)
    lost.tables["scores"]["agreement"] = [-0.05, 0.05] * 40
    assert find("visedit_figure_8").verdict(lost).holds is False


def changed(own, unrelated=0.9):
    rng = np.random.default_rng(0)
    names = {REPEAT: 0.8, REQUEST: own, CONTROL: 0.2, "T-Gen": own, "V-Gen": own,
             "M-Loc": unrelated}  # fmt: skip
    rows = [
        {"example": str(i), "input": name, "agreement": value + rng.normal(0, 0.01), "kept": value,
         "answered": 1.0, "mass_before": 0.4, "mass_after": 0.4}
        for i in range(20) for name, value in names.items()
    ]  # fmt: skip
    return Measured({"changes": pd.DataFrame(rows)}, {}, {"n": 20})


def test_how_far_an_edit_moves_heat_is_between_other_noise_and_another_question():
    for own, way in {0.8: 0.0, 0.5: 0.5, 0.2: 1.0}.items():
        assert moved_share(changed(own), "agreement").mean == pytest.approx(way, abs=0.02)
    for name in ("visedit_figure_4", "visedit_figure_9"):
        assert find(name).verdict(changed(0.75)).holds is True
        assert find(name).verdict(changed(0.25)).holds is False
    assert find("visedit_figure_4").verdict(changed(0.75, unrelated=0.7)).holds is False


def test_layers_are_shown_evenly_spread():
    assert evenly_spaced([2, 3, 4, 5, 6, 7, 8], 3) == [2, 5, 8] and evenly_spaced([4], 3) == [4]


def test_rows_are_picked_by_value():
    table = pd.DataFrame({"a": ["x", "y", None], "b": [1, 2, 3]})
    assert floats(table, "b", a=("x", "y")).tolist() == [1, 2]
    assert strings(table, "a", b=3) == [""] and select_rows(table, a="z").empty


def test_an_editor_that_is_not_there_is_told_how_to_train(tmp_path, monkeypatch):
    setting = Setting(editors=tmp_path / "none")
    with pytest.raises(SetupError, match="attrib train --editor visedit"):
        load_editor(setting, "visedit", tiny_vlm("llava"))
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert find_upwards(Path("runs/x")) == tmp_path / "runs" / "x"
    assert find_upwards(Path("no/such")) == Path("no/such")


def test_an_editor_of_a_folder_is_read(tmp_path, open_editor):
    vlm, live = open_editor
    live.save(tmp_path / "dualedit-seed-0")
    loaded = load_editor(Setting(editors=tmp_path), "dualedit", vlm)
    pairs = zip(loaded.tensors.values(), live.tensors.values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


MEASURED = {
    "dualedit_figure_3": "editor_structure", "dualedit_figure_4": "gate_scores",
    "visedit_figure_2": "editor_structure", "visedit_figure_3": "influence_maps",
    "visedit_figure_8": "influence_maps", "visedit_figure_4": "heatmap_before_after",
    "visedit_figure_9": "heatmap_before_after",
}  # fmt: skip


@pytest.fixture(scope="module")
def editors(tmp_path_factory):
    """A folder with editors that were never trained, but are whole."""
    folder = tmp_path_factory.mktemp("editors")
    for kind, layers in ((DualEdit, {"text": [1], "visual": [0]}), (VisEdit, {"visual": [0]})):
        _, live = editor(kind, layers, ALWAYS, mapper=kind is VisEdit)
        weights = {"reliability": 1.0, "influence": 0.1, "mapper_terms": ["mapper_up"]}
        trained = {"training": {"steps": 1}, "samples": 2, "weights": weights}
        replace(live, trained=trained).save(folder / f"{live.name}-seed-0")
    return folder


@pytest.mark.parametrize("name", [name for name in MEASURED if name != "visedit_figure_4"])
def test_a_figure_of_other_data_is_measured_saved_loaded_and_judged(
    name, editors, tmp_path, monkeypatch
):
    data = EditData("mine", "all", [sample(0), sample(1)], [], {"seed": 0})
    home = f"figures.{MEASURED[name]}.load_inputs"
    monkeypatch.setattr(home, lambda _: (tiny_vlm("llava"), data))
    figure = find(name)
    measured = figure.measure(Setting("tiny", "mine", editors=editors))
    measured.save(tmp_path)
    loaded = Measured.load(tmp_path)
    assert loaded.about["n"] == 2 and set(loaded.tables) == set(measured.tables)
    assert figure.alt(loaded) and figure.verdict(loaded).statistic
    # Nothing is known of where an object is: what rests on that cannot be told.
    if name in ("visedit_figure_3", "visedit_figure_8"):
        assert figure.verdict(loaded).holds is None and figure.render(loaded).axes


@pytest.mark.parametrize("name", ["visedit_figure_4", "visedit_figure_8"])
def test_without_another_question_about_a_picture_nothing_is_told(name, editors, monkeypatch):
    bare = [replace(sample(i), hard_locality=[], meta={}) for i in range(2)]
    data = EditData("mine", "all", bare, [], {"seed": 0})
    home = f"figures.{MEASURED[name]}.load_inputs"
    monkeypatch.setattr(home, lambda _: (tiny_vlm("llava"), data))
    verdict = find(name).verdict(find(name).measure(Setting("tiny", "mine", editors=editors)))
    assert verdict.holds is not True and "no value" in verdict.statistic
