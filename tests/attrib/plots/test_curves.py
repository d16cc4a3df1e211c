"""Plots: the curves are the means, the files are the same every time, nobody is left out."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import planted
import pytest

from attrib import plots

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def result():
    return planted.contributions(np.linspace(0, 1, 8))


def test_curves_are_the_means_of_the_result(result):
    ax = plots.contributions(result)
    means = result.mean(["layer", "module"])
    for label, module in (("attention", "attn"), ("MLP", "mlp")):
        (line,) = [line for line in ax.get_lines() if line.get_label() == label]
        rows = means[means["module"] == module]
        assert np.array_equal(line.get_xdata(), rows["layer"])
        assert np.array_equal(line.get_ydata(), rows["mean"])


def test_bands_span_the_intervals(result):
    band = plots.contributions(result).collections[0].get_paths()[0].vertices
    rows = result.where(module="attn").mean(["layer", "module"])
    assert np.isclose(band[:, 1].min(), rows["low"].min())
    assert np.isclose(band[:, 1].max(), rows["high"].max())


def test_a_plot_goes_on_the_axes_it_is_given_and_returns_them(result):
    ax = plots.new_axes()
    assert plots.contributions(result, ax) is ax
    assert plots.contributions(result) is not ax


def test_series_differ_by_more_than_colour(result):
    for ax in (plots.contributions(result), plots.attention(planted.attention([0.2, 0.5]))):
        lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
        looks = [
            (str(li.get_marker()), li.get_linestyle(), li.get_markerfacecolor()) for li in lines
        ]
        assert len(set(looks)) == len(looks) > 1


def test_attention_shares_lie_between_none_and_all():
    ax = plots.attention(planted.attention([0.2, 0.5, 0.3]), quantity="share")
    assert ax.get_ylim() == (0, 1) and len(ax.get_lines()) == 3


def test_side_by_side_figures_get_one_scale(result):
    large, small = plots.contributions(result), plots.contributions(planted.contributions([0, 0.1]))
    assert large.get_ylim() != small.get_ylim()
    plots.share_scale(large, small)
    assert large.get_ylim() == small.get_ylim() and large.get_ylim()[1] > 0.9


@pytest.mark.parametrize("target", ["file", "page"])
def test_the_same_result_is_the_same_svg_byte_for_byte(result, target):
    first, second = (plots.svg(plots.contributions(result), target=target) for _ in range(2))
    assert first == second and "dc:date" not in first


def test_saved_files_are_the_same_every_time(result, tmp_path):
    once = [path.read_bytes() for path in plots.save(plots.contributions(result), tmp_path / "a")]
    again = [path.read_bytes() for path in plots.save(plots.contributions(result), tmp_path / "b")]
    assert once == again
    names = {f"{stem}.{ending}" for stem in "ab" for ending in ("svg", "png", "pdf")}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert once[2].startswith(b"%PDF") and b"/FontFile2" in once[2]  # its fonts, as TrueType


def test_an_svg_says_what_it_shows(result):
    root = ET.fromstring(plots.svg(plots.contributions(result, title="Key <&> token")))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Key <&> token"
    description = root.findtext(f"{SVG}desc") or ""
    assert "attention is highest in layer 7" in description
    assert "MLP is highest in layer 7" in description


def test_text_in_an_svg_stays_text(result):
    root = ET.fromstring(plots.svg(plots.contributions(result)))
    assert "attention" in [text.text for text in root.iter(f"{SVG}text")]


def test_svgs_on_one_page_do_not_share_ids_and_follow_its_theme(result):
    drawings = [
        plots.svg(plots.contributions(result), target="page", prefix=p) for p in ("a-", "b-")
    ]
    ids = [set(re.findall(r'\bid="([^"]+)"', drawing)) for drawing in drawings]
    assert ids[0] and not ids[0] & ids[1]
    for drawing, known in zip(drawings, ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', drawing)) <= known
        assert drawing.startswith("<svg ") and "var(--blue, #0072b2)" in drawing


def test_one_example_is_drawn_without_a_band():
    ax = plots.contributions(planted.contributions([0, 1], examples=1))
    assert np.isfinite(ax.get_lines()[0].get_ydata()).all()
    assert "nan" not in plots.svg(ax)


def test_what_no_example_has_leaves_an_empty_curve():
    result = planted.attention([0.2, 0.5])
    frame = result.frame.copy()
    frame.loc[frame["statistic"].str.startswith("visual"), "value"] = np.nan
    ax = plots.attention(type(result)("attention", frame, result.provenance), quantity="share")
    assert "all visual" not in plots.describe(ax) and "all text" in plots.describe(ax)


@pytest.mark.parametrize(("images", "curves"), [(1, 3), (2, 5), (6, 9), (7, 3)])
def test_each_of_a_few_images_has_a_curve_inside_the_figure(images, curves):
    result = planted.attention([0.2, 0.5])
    whole = result.frame[result.frame["statistic"].isin(["visual_mean", "visual_sum"])]
    parts = [
        whole.assign(statistic=whole["statistic"] + f"[{i}]", value=whole["value"] * (i + 1) / 28)
        for i in range(images if images > 1 else 0)
    ]
    frame = pd.concat([result.frame, *parts], ignore_index=True)
    for quantity in ("token", "share"):
        ax = plots.attention(type(result)("attention", frame, result.provenance), quantity=quantity)
        last = ax.get_lines()[-1]
        assert len(ax.get_lines()) == curves and (
            curves == 3 or last.get_label().endswith(f" {images}")
        )
        ax.figure.draw_without_rendering()
        legend, whole_figure = ax.get_legend().get_window_extent(), ax.figure.bbox
        assert legend.x0 >= 0 and legend.x1 <= whole_figure.width and legend.y0 >= 0
        assert ax.get_position().width > 0.5 and ax.get_position().height > 0.3
