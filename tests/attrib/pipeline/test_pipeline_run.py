"""`attrib.run`: the same numbers as the command, resumable, with figures and a summary."""

import re

import pandas as pd
import pytest
from conftest import picture, tiny_vlm
from matplotlib.axes import Axes

import attrib
from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.pipeline import ALIASES, ANALYSES, analysis_of, find_analysis
from attrib.results import Result
from attrib.runs import Collector

SAMPLES = [
    EditSample(f"e{i}", EditRequest(picture(seed=i), "The animal is a", "cat"), meta={"row": i})
    for i in range(3)
]


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def result(vlm):
    return attrib.run("contributions", vlm, SAMPLES, norm="frozen")


def test_it_holds_the_numbers_of_the_function(vlm, result):
    batch = vlm.encode([s.request.image for s in SAMPLES], [s.request.prompt for s in SAMPLES])
    expected = attrib.contributions(vlm, batch, norm="frozen").flatten().tolist()
    assert result.frame["value"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert result.provenance["options"]["norm"] == "frozen"


def test_a_folder_is_continued_and_can_be_loaded(vlm, result, tmp_path, monkeypatch):
    first = attrib.run("contributions", vlm, SAMPLES, out=tmp_path / "x", norm="frozen")
    pd.testing.assert_frame_equal(first.frame, result.frame)
    monkeypatch.setattr(Collector, "add", pytest.fail)
    again = attrib.run("contributions", vlm, SAMPLES, out=tmp_path / "x", norm="frozen")
    assert again == first == Result.load(tmp_path / "x")
    with pytest.raises(SetupError, match='norm: "frozen" there, "none" now'):
        attrib.run("contributions", vlm, SAMPLES, out=tmp_path / "x")


def test_without_a_folder_nothing_is_written(vlm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attrib.run("attention", vlm, SAMPLES[:1]).examples == 1
    assert not list(tmp_path.iterdir())


def test_rows_that_cannot_be_used_are_quarantined(vlm):
    bad = EditSample("bad", EditRequest("nowhere.png", "The animal is a", "cat"), meta={"row": 9})
    result = attrib.run("attention", vlm, [*SAMPLES, bad])
    assert result.examples == 3 and len(result.quarantined) == 1
    assert "nowhere.png" in str(result.quarantined[0])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("divination", {}, "no analysis 'divination'; analyses are contributions, "),
        ("contributions", {"norms": "none"}, "contributions: norms: .*known are .*norm"),
        ("contributions", {"norm": "loud"}, "contributions: norm: Input should be 'none'"),
        ("sensitivity", {"sigmas": [-1]}, "sensitivity: sigmas: expected numbers of 0 or more"),
        ("gate", {"layer": 99}, "--layer 99: the model has layers 0 to 3"),
    ],
)
def test_mistakes_name_the_option_and_what_would_work(vlm, name, options, told):
    with pytest.raises(AttribError, match=told):
        attrib.run(name, vlm, SAMPLES, **options)


def test_former_names_of_options_are_accepted(vlm):
    new = attrib.run("sensitivity", vlm, SAMPLES[:1], sigmas=[0.5], exclude_last=True)
    old = attrib.run("sensitivity", vlm, SAMPLES[:1], sigmas=[0.5], spare_last=True)
    assert old == new
    assert not attrib.run("sensitivity", vlm, SAMPLES[:1], sigmas=[0.5]).frame.equals(new.frame)


@pytest.mark.parametrize("name", ["contributions", "attention", "heatmaps", "sensitivity"])
def test_every_figure_is_an_axes_and_the_summary_names_the_model_or_layer(vlm, name):
    options = {"sigmas": [0.5]} if name == "sensitivity" else {}
    result = attrib.run(name, vlm, SAMPLES[:2], **options)
    assert result.figures
    for figure in result.figures:
        assert isinstance(result.plot(figure), Axes)
    assert isinstance(result.plot(), Axes)
    assert "layer" in result.summary()
    assert "<svg" in result._repr_html_() and len(repr(result).splitlines()) <= 10
    with pytest.raises(AttribError, match="no figure 'nonsense'; figures of"):
        result.plot("nonsense")


def test_a_loaded_run_draws_with_the_options_it_was_made_with(vlm, tmp_path):
    attrib.run("heatmaps", vlm, SAMPLES[:2], out=tmp_path / "x", noise=0.5, pictures=1)
    loaded = Result.load(tmp_path / "x" / "result.parquet")
    assert set(loaded.tables) == {"grids"}
    assert analysis_of(loaded).options.noise == 0.5
    assert loaded.figures == ["heat-by-layer"]  # the images are not saved


def test_a_table_of_no_analysis_has_rows_but_no_figure():
    table = Result("mine", pd.DataFrame({"example": ["<b>"], "value": [1.0]}), {})
    assert "&lt;b&gt;" in table._repr_html_() and "<svg" not in table._repr_html_()
    with pytest.raises(AttribError, match="'mine' is no analysis"):
        table.plot()


def test_every_name_finds_its_class():
    for name in ANALYSES:
        assert find_analysis(name).name == name
    for alias, name in ALIASES.items():
        assert find_analysis(alias) is find_analysis(name)


def test_a_notebook_displays_axes_as_their_figure(result):
    assert result.plot()._repr_png_().startswith(b"\x89PNG")


def test_another_image_under_the_same_id_is_other_data(vlm, tmp_path):
    attrib.run("attention", vlm, SAMPLES[:1], out=tmp_path / "x")
    request = EditRequest(picture(seed=9), "The animal is a", "cat")
    with pytest.raises(SetupError, match="sha256: "):
        attrib.run("attention", vlm, [EditSample("e0", request)], out=tmp_path / "x")


def test_without_a_folder_every_process_measures_everything(vlm, monkeypatch):
    monkeypatch.setattr("attrib.runs.distributed.time.sleep", pytest.fail)  # waiting for others
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert attrib.run("attention", vlm, SAMPLES).examples == 3


def test_results_on_one_page_share_no_id(vlm, result):
    other = attrib.run("contributions", vlm, SAMPLES, norm="final")
    ids = [set(re.findall(r'id="([^"]+)"', one._repr_html_())) for one in (result, other)]
    assert ids[0] and not ids[0] & ids[1]
