"""Overlays: cells where they lie, one scale for all layers, numbers and words beside colours."""

import io
import re

import numpy as np
import pandas as pd
import planted
import pytest
from PIL import Image

from attrib import plots
from attrib.model.batch import Grid
from attrib.report.intervention_summaries import (
    faithfulness_table,
    summarize_faithfulness,
    summarize_heatmaps,
)
from attrib.results import Result

IMAGE = Image.new("RGB", (60, 40), "teal")
MAPS = np.stack([np.arange(6.0).reshape(2, 3) / 100, np.eye(2, 3)])


def draw(box=(10.0, 0.0, 50.0, 40.0), **options):
    return plots.overlay(IMAGE, MAPS, [4, 7], box, **options)


def panels(ax):
    return [a for a in ax.get_figure().axes if a.get_images()]


def heat_of(ax):
    return ax.get_images()[-1]


def test_cells_lie_in_their_box_and_the_image_where_it_is():
    first, *layers = panels(draw())
    assert len(layers) == 2
    for ax in layers:
        image, heat = ax.get_images()
        assert list(image.get_extent()) == [0, 60, 40, 0]
        assert list(heat.get_extent()) == [10, 50, 40, 0]
        assert heat.get_interpolation() == "nearest"
    assert len(first.get_images()) == 1


def test_cells_beyond_the_image_are_shown_too():
    ax = panels(draw((-10.0, -5.0, 70.0, 45.0)))[1]
    assert ax.get_xlim() == (-10, 70) and ax.get_ylim() == (45, -5)


def test_the_image_shows_under_every_cell_and_strong_cells_are_more_opaque():
    for ax in panels(draw())[1:]:
        opacity = np.asarray(heat_of(ax).get_alpha())
        assert opacity.min() > 0 and opacity.max() <= 0.7
        assert opacity.argmax() == heat_of(ax).get_array().argmax()


@pytest.mark.parametrize("size", [(120, 30), (60, 60), (40, 72)])
def test_panels_have_the_shape_of_the_photo(size):
    width, height = size
    box = (0.0, 0.0, float(width), float(height))
    figure = plots.overlay(Image.new("RGB", size), MAPS, [4, 7], box).get_figure()
    figure.draw_without_rendering()  # lays it out
    shapes = [ax.get_window_extent() for ax in figure.axes if ax.get_images()]
    for shape in shapes:
        assert shape.height / shape.width == pytest.approx(height / width, rel=0.02)
    assert len({round(shape.width) for shape in shapes}) == 1


def test_all_layers_share_one_scale_and_print_their_own_ends():
    layers = panels(draw())[1:]
    assert {(heat_of(ax).norm.vmin, heat_of(ax).norm.vmax) for ax in layers} == {(0.0, 1.0)}
    assert [ax.get_xlabel() for ax in layers] == ["0 to 0.05", "0 to 1"]
    assert [ax.get_title(loc="left") for ax in layers] == ["layer 4", "layer 7"]


def test_the_colour_map_is_even_and_has_no_rainbow():
    assert heat_of(panels(draw())[1]).get_cmap().name == plots.HEATMAP_COLORS


def test_the_figure_is_told_in_words_and_the_file_is_the_same_every_time():
    ax = draw(title="What is <it>?", note="a note")
    said = plots.describe(ax)
    assert "2 by 3 cells (a note)" in said and "layer 7 is highest at row 0, column 0 (1)" in said
    assert "<desc>Heatmaps of 2 by 3 cells" in plots.svg(ax)
    one, other = (plots.svg(draw(title="What is <it>?")) for _ in range(2))
    assert one == other


def test_queries_are_bars_on_one_scale():
    ax = plots.token_bars(np.array([[0.1, 0.3], [0.2, 0.6]]), [0, 1], title="prompt")
    first, second = ax.get_figure().axes
    assert first.get_ylim() == second.get_ylim() and len(first.patches) == 2
    assert "layer 1 is highest at token 1 (0.6)" in plots.describe(ax)


# --- from tables


def table(layers=2, rows=2, cols=3, example="e0", name="token", first=0):
    cells = rows * cols + first
    place = np.full((2, cells), -1)
    place[:, first:] = np.indices((rows, cols)).reshape(2, -1)
    return pd.DataFrame({
        "example": example, "layer": np.repeat(np.arange(layers), cells),
        name: np.tile(np.arange(cells), layers), "row": np.tile(place[0], layers),
        "col": np.tile(place[1], layers), "value": np.arange(layers * cells) / 100.0,
    })  # fmt: skip


GRID = pd.Series({"rows": 2, "cols": 3, "left": 0.0, "top": 0.0, "right": 60.0, "bottom": 40.0})


def test_pictures_take_the_cells_of_the_grid_and_leave_out_the_others():
    ((kind, ax),) = plots.heatmap_pictures(IMAGE, table(first=4), None, dict(GRID)).items()
    assert kind == "heatmap"
    values = heat_of(panels(ax)[1]).get_array()
    assert np.allclose(values, np.arange(4, 10).reshape(2, 3) / 100)


def test_q_formers_get_bars_and_a_picture_that_is_labelled():
    drawn = plots.heatmap_pictures(IMAGE, table(), table(name="patch"), dict(GRID))
    assert set(drawn) == {"queries", "picture"}
    assert "cross-attention" in plots.describe(drawn["picture"])


def test_without_a_grid_there_are_bars():
    grid = GRID * np.nan
    grid["rows"] = grid["cols"] = 0
    ((kind, ax),) = plots.heatmap_pictures(IMAGE, table(), None, dict(grid)).items()
    assert kind == "heatmap" and not panels(ax)


def test_many_layers_are_thinned_out_from_the_first_to_the_last():
    ax = plots.heatmap_pictures(IMAGE, table(layers=40), None, dict(GRID))["heatmap"]
    titles = [a.get_title(loc="left") for a in panels(ax)[1:]]
    assert len(titles) == 15 and titles[0] == "layer 0" and titles[-1] == "layer 39"


@pytest.fixture
def heat():
    frames = [table(layers=3, example=f"e{i}").assign(value=0.01) for i in range(4)]
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[frame["layer"] == 1, "value"] = 0.1
    frame.loc[(frame["layer"] == 1) & (frame["token"] == 2), "value"] = 0.9
    return Result("heatmap", frame, planted.PROVENANCE)


def test_the_curve_is_the_mean_over_tokens_and_the_sentence_names_the_layer(heat):
    (line,) = plots.heatmap_by_layer(heat).get_lines()
    assert np.allclose(line.get_ydata(), [0.01, 1.4 / 6, 0.01])
    said = summarize_heatmaps(heat)
    assert "layer 1's attention output most" in said and "lies on 17 % of the visual tokens" in said
    assert "first in 100 % of bootstrap samples" in said and re.search(r"by 0\.23 on average", said)


def test_no_heat_at_all_is_said(heat):
    cold = Result("heatmap", heat.frame.assign(value=0.0), heat.provenance)
    assert "in no layer" in summarize_heatmaps(cold)


@pytest.fixture
def pointing():
    rng = np.random.default_rng(0)
    rows = [
        {
            "example": f"e{i}", "layer": layer, "method": method, "statistic": statistic,
            "value": {"chance": 0.1, "hit": float(rng.random() < p)}.get(statistic, 0.4 + p / 2),
            "kind": "color", "right": i < 15,
        }
        for i in range(20)
        for method, best in (("heatmap", 2), ("attention", 0), ("gradient", 1))
        for layer in range(3)
        for p in [0.9 if layer == best else 0.1]
        for statistic in ("hit", "chance", "auc", "auc_objects")
    ]  # fmt: skip
    return Result("faithfulness", pd.DataFrame(rows), planted.PROVENANCE)


def test_faithfulness_has_a_curve_a_method_and_a_line_of_chance(pointing):
    for statistic, chance in (("hit", 0.1), ("auc", 0.5), ("auc_objects", 0.5)):
        lines = {ax.get_label(): ax for ax in plots.faithfulness(pointing, statistic).get_lines()}
        assert set(lines) == {"chance", "heatmap", "attention", "gradient"}
        assert np.allclose(lines["chance"].get_ydata(), chance)
    assert np.argmax(lines["heatmap"].get_ydata()) == 2


def test_faithfulness_has_a_row_a_method_and_a_sentence_about_the_best(pointing):
    frame = pointing.frame.drop(columns="layer").assign(value=0.5)
    all_layers = Result("all_layers", frame, {})
    table = faithfulness_table(pointing, all_layers).set_index("method")
    assert table["best layer"].to_dict() == {"heatmap": 2, "attention": 0, "gradient": 1}
    assert (table["all layers"] == 0.5).all() and np.allclose(table["AUC"], 0.85)
    assert ((table["low"] < table["hit"]) & (table["hit"] < table["high"] + 1e-9)).all()
    said = summarize_faithfulness(pointing, all_layers)
    best = table["hit"].idxmax()
    assert f"the hottest patch of the {best} map of layer {table.loc[best, 'best layer']}" in said
    assert "chance 10 %" in said and "answers 75 % of them correctly" in said


def test_weak_cells_leave_the_image_visible_and_missing_ones_are_clear():
    values = np.array([[0.0, 0.5, 1.0, np.nan]])
    with Image.open(io.BytesIO(plots.heatmap_png(values))) as png:
        opacity = np.asarray(png)[0, :, 3]
    assert opacity[3] == 0 < opacity[0] < opacity[1] < opacity[2] < 255


@pytest.mark.parametrize("grid", [Grid(2, 3, (0.0, 0.0, 60.0, 40.0), first=4), None])
def test_the_heatmaps_of_one_example_are_drawn_from_the_analysis_itself(grid):
    values = np.arange(20.0).reshape(2, 10)
    ax = plots.heatmaps(IMAGE, values, grid, layers=[3, 5], title="What?")
    if grid is None:
        assert len(ax.get_figure().axes[1].patches) == 10
    else:
        cells = heat_of(panels(ax)[2]).get_array()
        assert np.allclose(cells, np.arange(14.0, 20.0).reshape(2, 3))
