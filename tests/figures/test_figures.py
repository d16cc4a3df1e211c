"""Figures: committed numbers give the committed bytes, and verdicts follow the numbers."""

import re
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from committed_figures import FIGURES, FIRST, FOLDERS, ROOT, committed, drawn

from attrib.errors import AttribError, SetupError
from figures import (
    DEFAULT,
    PAPER,
    Measured,
    Setting,
    Verdict,
    find,
    names,
    other_models,
    results,
    write,
    write_index,
)
from figures.__main__ import main
from figures.contribution_bars import depth_increase
from figures.estimates import mean_interval, peak
from figures.frames import by_layer, pivot_wide
from figures.measure import same_depth
from figures.style import applied

LARGEST = 500_000  # bytes of a picture
NUMBERS = {"tiny-llava": 300_000, "smol-llava": 600_000}  # bytes; 10 layers, and 30
EXAMPLES, LAYERS = 30, 10
ABOUT = {"model": "planted", "data": "none", "seed": 0, "n": EXAMPLES, "layers": LAYERS}


@cache
def judged(name, model=FIRST):
    """A figure whose verdict and description of its committed numbers are made once.

    Those of other models' numbers are made when they are asked for.
    """
    figure, measured = find(name), committed(name, model)
    verdict, alt = figure.verdict(measured), figure.alt(measured)

    def once(said, make):
        return lambda given: said if given is measured else make(given)

    return replace(figure, verdict=once(verdict, figure.verdict), alt=once(alt, figure.alt))


def pinned(package):
    """Whether a package is of the version that the committed files were made with."""
    found = re.search(rf"(?m)^{package}==(\S+)$", (ROOT / "constraints.txt").read_text())
    return found is not None and version(package) == found[1]


same_versions = pytest.mark.skipif(
    not (pinned("matplotlib") and pinned("numpy") and pinned("pillow")),
    reason="other versions draw other bytes: un-skip with those of constraints.txt",
)


def test_all_figures_of_both_papers_are_there():
    assert names() == (
        *(f"dualedit_figure_{i}" for i in range(1, 6)),
        *(f"visedit_figure_{i}" for i in range(1, 10)),
    )


@same_versions
@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("name", names())
def test_the_committed_numbers_give_the_committed_picture(name, model):
    from attrib.plots.drawing import figure_svg

    figure, measured = judged(name, model), committed(name, model)
    with applied(DEFAULT):
        svg = figure_svg(drawn(name, model), f"{figure.source}, reproduced", figure.alt(measured))
    assert svg == (FOLDERS[model] / f"{name}.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("name", names())
def test_every_figure_says_what_it_claims_shows_and_finds(name, model):
    figure, measured = judged(name, model), committed(name, model)
    verdict, alt = figure.verdict(measured), figure.alt(measured)
    assert len(figure.claim) > 40 and figure.title and "Figure" in figure.source
    assert 40 < len(figure.published) < 90 and "|" not in figure.published
    assert re.search(r"\d", alt) and "\n" not in alt
    assert re.search(r"\d", verdict.statistic) and verdict.text.startswith(verdict.word)
    assert measured.about["n"] > 0 and name in measured.about["command"]


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("name", names())
def test_what_is_committed_is_small(name, model):
    for kind in ("svg", "png"):
        assert (FOLDERS[model] / f"{name}.{kind}").stat().st_size < LARGEST
    folder = FOLDERS[model] / "data" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < NUMBERS[model]


def test_the_index_is_made_of_the_committed_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("figures.export.find", judged)
    found = {name: committed(name) for name in names()}
    page = write_index(found, tmp_path, other_models(FIGURES)).read_text()
    assert page == (FIGURES / "README.md").read_text(encoding="utf-8")
    for name in names():
        assert f"({name}.svg)" in page and find(name).claim in page
        assert f"| {find(name).title} | {find(name).published} | " in page


def test_figures_of_another_model_get_a_column_and_a_section(tmp_path):
    read = {name: committed(name) for name in ("dualedit_figure_1", "dualedit_figure_2")}
    another = replace(read["dualedit_figure_2"], about={**ABOUT, "command": "again"})
    another.save(tmp_path / "other-llava" / "data" / "dualedit_figure_2")
    page = write_index(read, tmp_path, other_models(tmp_path)).read_text()
    head, first, second = (
        line for line in page.splitlines() if line.startswith("| ") and "---" not in line
    )
    assert head == "| Figure | Shows | Published | Verdict | on other-llava |"
    assert first.endswith("| not measured |") and second.endswith("| holds here | holds here |")
    assert page.count("**On other-llava**") == 1 and f"(n = {EXAMPLES})" in page
    assert "(other-llava/dualedit_figure_2.svg)" in page and "measured by `again`" in page
    assert "other-llava" not in write_index(read, tmp_path).read_text()


def test_what_is_saved_is_loaded_and_saved_again_the_same(tmp_path):
    table = pd.DataFrame({"example": ["1", "None"], "layer": [0, 1], "value": [1 / 3, np.nan]})
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    measured = Measured({"t": table}, {"i": image}, {"n": 2})
    first = [path.read_bytes() for path in measured.save(tmp_path / "a")]
    loaded = Measured.load(tmp_path / "a")
    assert [path.read_bytes() for path in loaded.save(tmp_path / "b")] == first
    assert loaded.tables["t"]["example"].tolist() == ["1", "None"]
    assert loaded.tables["t"]["value"][0] == 0.33333 and np.isnan(loaded.tables["t"]["value"][1])
    assert (loaded.images["i"] == image).all() and loaded.about == {"n": 2}


def test_numbers_of_an_earlier_measurement_do_not_stay_behind(tmp_path):
    table, image = pd.DataFrame({"x": [1.0]}), np.zeros((2, 2, 3), np.uint8)
    Measured({"old": table, "kept": table}, {"old": image}, {"n": 1}).save(tmp_path)
    Measured({"kept": table}, {"new": image}, {"n": 2}).save(tmp_path)
    loaded = Measured.load(tmp_path)
    assert (set(loaded.tables), set(loaded.images)) == ({"kept"}, {"new"})


def test_results_are_the_committed_ones_for_the_default_setting_alone(tmp_path):
    figure = find("visedit_figure_5")
    measured = Measured({}, {}, {"n": 3})
    measured.save(tmp_path / figure.name)
    fresh = Measured({}, {}, {"n": 4})
    asked = type(figure)(**{**vars(figure), "measure": lambda _: fresh})
    assert results(asked, Setting(), tmp_path).about == {"n": 3}
    assert results(asked, Setting(limit=4), tmp_path) is fresh


def test_a_verdict_says_which_of_three_it_is():
    words = [Verdict(holds, "n = 1").text for holds in (True, False, None)]
    assert words == ["holds here: n = 1", "does not hold here: n = 1", "undecided here: n = 1"]


def test_wrong_names_and_missing_results_say_what_would_work(tmp_path):
    with pytest.raises(AttribError, match="there are dualedit_figure_1, "):
        find("figure_1")
    with pytest.raises(SetupError, match="--measure"):
        Measured.load(tmp_path)


def test_the_command_draws_the_figures_that_are_named_the_same_every_time(
    monkeypatch, capsys, tmp_path
):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["figures", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), capsys.readouterr().out

    name = "visedit_figure_5"
    code, out = run(name, "--results", FIGURES / "data", "--out", "new")
    assert code == 0 and find(name).verdict(committed(name)).text in out
    files = [tmp_path / "new" / f"{name}.svg", tmp_path / "new" / f"{name}.png"]
    assert {*(tmp_path / "new").iterdir()} == {*files}
    vector, pixels = (
        [path.read_bytes() for path in both]
        for both in zip(
            files,
            write(find(name), committed(name), tmp_path / "again"),
            write(find(name), committed(name), tmp_path / "paper", PAPER),
            strict=True,
        )
    )
    for made, again, other in (vector, pixels):
        assert made == again and made != other
    if same_versions.args[0] is False:
        assert pixels[0] == (FIGURES / f"{name}.png").read_bytes()
    assert run("visedit_figure_99")[0] == 2
    assert run(name, "--results", "nowhere")[0] == 3


def test_tables_and_intervals():
    long = pd.DataFrame(
        {"example": ["a", "a", "b", "b"], "layer": 0, "kind": ["x", "y"] * 2, "value": [1, 2, 3, 4]}
    )
    table = pivot_wide(long, "kind", ("example", "layer"))
    assert list(table.columns) == ["example", "layer", "x", "y"]
    assert by_layer(table, "y").tolist() == [[2], [4]]
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.0, (400, 3))
    mean, low, high = mean_interval(values)
    assert (low < mean).all() and (mean < high).all() and np.allclose(high - low, 0.196, atol=0.03)
    at, where = peak(values + np.array([0, 5, 0]))
    assert at == 1 and (where == 1).all()
    assert [same_depth(layer, 32, 10) for layer in (0, 10, 31)] == [0, 3, 9]


def plant(means, name="value", spread=0.02, seed=0):
    """A column of a table with a row per example and layer, around a mean per layer."""
    noise = np.random.default_rng(seed).normal(0, spread, (EXAMPLES, LAYERS))
    examples = np.repeat([f"e{i}" for i in range(EXAMPLES)], LAYERS)
    layers = np.tile(np.arange(LAYERS), EXAMPLES)
    values = (np.asarray(means) + noise).ravel()
    return pd.DataFrame({"example": examples, "layer": layers, name: values})


def planted(columns, spread=0.02):
    first, *others = (
        plant(means, name, spread, seed) for seed, (name, means) in enumerate(columns.items())
    )
    for other in others:
        first = first.merge(other, on=["example", "layer"])
    return first


def says(name, **tables):
    return find(name).verdict(Measured(tables, {}, ABOUT)).holds


def bump(at, height=1.0):
    return height * np.exp(-((np.arange(LAYERS) - at) ** 2))


RISING, FLAT = np.linspace(0.0, 1.0, LAYERS), np.full(LAYERS, 0.5)


def test_attention_verdict_follows_planted_peaks():
    def verdict(text, visual):
        columns = {"text_mean": text, "visual_mean": visual, "visual_top3": visual}
        return says("dualedit_figure_1", profile=planted(columns, 0.01))

    assert verdict(1 + bump(1), bump(3)) is True
    assert verdict(1 + bump(8), bump(3)) is False  # a late peak
    assert verdict(1 + bump(3), bump(3)) is False  # the same layer
    assert verdict(bump(1), 1 + bump(3)) is False  # less for words


def test_noise_verdict_follows_planted_effects():
    def verdict(visual, text, beyond):
        columns = {
            f"{modality}_{sigma}": sigma * size
            for sigma in (0.1, 1.0)
            for modality, size in (("visual", visual), ("text", text))
        }
        noise = planted(columns, 0.001)
        for sigma in (0.1, 1.0):
            noise[f"both_{sigma}"] = noise[f"visual_{sigma}"] + noise[f"text_{sigma}"] + beyond
        return says("dualedit_figure_2", noise=noise)

    assert verdict(bump(2), bump(6), 0.5) is True
    assert verdict(bump(2), bump(6), 0.0) is False  # the effects add up
    assert verdict(bump(4), bump(4), 0.5) is not True  # the same layers


def test_contribution_verdicts_follow_planted_slopes():
    def table(means):
        names = ("attn", "mlp", "attn_final", "mlp_final")
        return planted(dict.fromkeys(names, means))

    for name in ("visedit_figure_5",):
        assert says(name, contributions=table(RISING).assign(model="m")) is True
        assert says(name, contributions=table(FLAT).assign(model="m")) is not True
        assert says(name, contributions=table(RISING[::-1]).assign(model="m")) is False
    both = pd.concat([table(RISING).assign(model="m"), table(RISING[::-1]).assign(model="k")])
    assert says("visedit_figure_5", contributions=both) is False
    assert np.isclose(depth_increase(table(RISING)).mean(), 5 / 9, atol=0.01)


def test_wrong_key_verdict_follows_planted_sizes():
    def verdict(wrong):
        columns = {"attn": RISING, "mlp": RISING, "attn_wrong": wrong, "mlp_wrong": wrong}
        return says("visedit_figure_6", contributions=planted(columns).assign(model="m"))

    assert verdict(0.03 * FLAT) is True
    assert verdict(RISING) is False
    assert verdict(FLAT) is False  # without a slope, yet as large


def test_heatmap_verdicts_follow_planted_hits():
    bars = planted(dict.fromkeys(("attn", "mlp", "attn_final", "mlp_final"), RISING))

    def verdict(name, hits, **more):
        columns = {"chance": np.full(LAYERS, 0.1), "paper": hits, "little": hits}
        return says(name, pointing=planted(columns), **more)

    rises = np.where(np.arange(LAYERS) < 5, 0.1, 0.9)
    assert verdict("visedit_figure_7", rises) is True
    assert verdict("visedit_figure_7", np.full(LAYERS, 0.1)) is False
    assert verdict("visedit_figure_7", np.full(LAYERS, 0.9)) is False  # shallow ones do as well
    assert verdict("visedit_figure_1", rises, contributions=bars) is True
    assert verdict("visedit_figure_1", np.full(LAYERS, 0.1), contributions=bars) is False


def test_where_the_truth_is_not_known_heatmaps_tell_nothing():
    bars = planted(dict.fromkeys(("attn", "mlp", "attn_final", "mlp_final"), RISING))
    assert says("visedit_figure_7") is None
    assert says("visedit_figure_1", contributions=bars) is None


@pytest.mark.parametrize(
    ("name", "tables"),
    [("dualedit_figure_1", ["profile"]), ("visedit_figure_1", ["contributions", "pointing"])],
)
def test_fresh_numbers_are_the_committed_ones_however_many_there_are(name, tables):
    fresh, there = find(name).measure(Setting(limit=1)), committed(name)
    assert fresh.about["n"] == 1 and "--limit 1" in fresh.about["command"]
    assert set(fresh.tables) == set(there.tables)
    for table in tables:
        new = fresh.tables[table]
        both = new.merge(there.tables[table], on=["example", "layer"], suffixes=("", "_old"))
        assert len(both) == len(new) > 0
        for column in new.columns[2:]:
            assert np.allclose(both[column], both[f"{column}_old"], rtol=1e-3, atol=1e-4)
