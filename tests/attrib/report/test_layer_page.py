"""The report on layers: one safe page, Markdown and JSON, all of the same computed content."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace

import planted_layer_report as planted
import planted_layers
import pytest
from planted_layer_report import EVIL
from test_demo_report import Parsed

from attrib.errors import AttribError
from attrib.report.caveats import caveats
from attrib.report.content import content_of
from attrib.report.layers_page import render_html, render_json, render_markdown, write_layer_report
from attrib.report.rationale import why
from attrib.report.summary import grid_in_short, headline, partial_of, sureness


def no_figure(*_given, **_options):
    return "<svg></svg>"


@pytest.fixture(scope="module")
def study():
    return planted.study()


@pytest.fixture(scope="module")
def content(study):
    return content_of(study)


@pytest.fixture(scope="module")
def page(study, content):
    return Parsed(render_html(study, content))


@pytest.fixture(scope="module")
def hostile():
    """A study whose prompts, file names and model name are hostile."""
    return planted.study(prompt=EVIL, name=EVIL, file=EVIL, number=120)


@pytest.fixture(scope="module")
def evil(hostile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attrib.plots.svg", no_figure)
        return Parsed(render_html(hostile))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take longer than all the rest: none, where they are not what is looked at."""
    monkeypatch.setattr("attrib.plots.svg", no_figure)


def words(page):
    return " ".join(" ".join(page.text).split())


def test_every_tag_is_closed_and_every_id_is_its_own(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100


def test_the_page_loads_nothing(page):
    assert {"iframe", "object", "embed", "link", "base", "form"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), tag


def test_the_content_policy_allows_the_slider_s_script_and_no_other(study, content, page):
    (policy,) = [a["content"] for t, a in page.tags if "http-equiv" in a and t == "meta"]
    (script,) = re.findall(r"<script>(.*?)</script>", render_html(study, content), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.usefixtures("undrawn")
def test_without_heatmaps_no_script_may_run_at_all():
    without = render_html(planted.study(runs=planted.runs()))
    assert "script" not in without.replace("No heatmaps were made", "")
    assert "attrib heatmap makes them" in without


def test_hostile_text_is_text_in_prompts_file_names_and_model_names(evil, page):
    assert words(evil).count(EVIL) > 10  # title, headline, sentences, cards, samples, rows
    assert {tag for tag, _ in evil.tags} <= {tag for tag, _ in page.tags}
    assert [tag for tag, _ in evil.tags].count("script") == 1
    images = [[tag for tag, _ in p.tags].count("img") for p in (evil, page)]
    assert images[0] == images[1]


@pytest.mark.usefixtures("undrawn")
def test_hostile_text_is_text_in_markdown(hostile):
    text = render_markdown(hostile)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"<\w|(?<!\\)\{\{|(?<!\\)\]\(", prose)
    plain = html.unescape(re.sub(r"\\([\\`*_\[\]{}|#!~$])", r"\1", prose))
    assert plain.count(EVIL) > 5


def test_the_first_sentence_names_the_chosen_layers(study, page):
    layers = study.report.layers
    said = (
        f"Edit planted: the words at layer {layers['text'][0]} and the visual tokens at layer "
        f"{layers['visual'][0]}."
    )
    assert headline(study) == said
    text = words(page)
    assert text.index(said) < text.index("Why these layers") < text.index("How sure this is")


def test_the_same_layer_for_both_is_named_once(study):
    same = replace(study, report=replace(study.report, layers={"text": [4], "visual": [4]}))
    none = replace(study, report=replace(study.report, layers={"text": [4, 2], "visual": []}))
    assert headline(same).startswith("Edit planted at layer 4, both the words and")
    assert "the words at layer 4 (then 2)" in headline(none)
    assert "No layer can be chosen for the visual tokens" in headline(none)


def test_why_says_what_each_rule_gives_the_chosen_layer_and_the_next(study):
    first, *sentences = why(study)
    assert "good by every one" in first and len(sentences) == 2
    for modality, sentence in zip(("text", "visual"), sentences, strict=True):
        choices = study.report.choices[modality]
        own = study.report.layers[modality][0]
        share = choices["patching"].scores[own] / max(
            score for score in choices["patching"].scores if score is not None
        )
        assert f"{share:.0%} of patching's" in sentence
        assert f"The next best, layer {choices['consensus'].ranking[1]}" in sentence


def test_every_figure_has_its_numbers_and_marks_the_chosen_layers(page, content):
    figures = [figure for part in content["parts"] for figure in part.figures]
    figures += content["scores"]
    assert len(figures) == 8 and sum(tag == "svg" for tag, _ in page.tags) == len(figures)
    for figure in figures:
        assert "chosen" in figure.svg and len(figure.table["rows"]) == planted_layers.LAYERS
        assert set(figure.table["chosen"]) <= {layer for layer, _ in figure.table["rows"]}
    assert [tag for tag, _ in page.tags].count("desc") == len(figures)


def test_the_chosen_layer_s_heatmap_shows_before_any_script_runs(study, page):
    steps = [a for _, a in page.tags if "data-step" in a]
    (visual,) = study.report.layers["visual"]
    assert {a["data-step"] for a in steps if "hidden" not in a} == {str(visual)}
    assert {a["data-step"] for a in steps} == {str(i) for i in range(planted_layers.LAYERS)}
    (slider,) = [a for _, a in page.tags if a.get("type") == "range"]
    assert (slider["value"], slider["max"]) == (str(visual), str(planted_layers.LAYERS - 1))


def test_cells_lie_where_the_processor_had_them(page):
    over = next(a["style"] for _, a in page.tags if a.get("class") == "over")
    under = next(a["style"] for _, a in page.tags if a.get("class") == "under")
    # The box is 4 pixels wider than the image of 32, on both sides.
    assert over == "left:0%;top:0%;width:100%;height:100%"
    assert under == "left:10%;top:0%;width:80%;height:100%"


@pytest.mark.usefixtures("undrawn")
def test_heat_of_no_grid_is_a_strip():
    page = Parsed(render_html(planted.study(runs=[*planted.runs(), planted.heatmap(rows=0)])))
    assert any(a.get("class") == "strip" for _, a in page.tags)
    assert "token 3" in words(page)


def test_a_whole_study_is_not_called_partial(study, page):
    assert partial_of(study) == "" and "partial" not in words(page)


@pytest.mark.usefixtures("undrawn")
def test_a_partial_study_says_what_is_there_of_how_much():
    sweep = planted.run_of(planted_layers.sweep("visual"), rows=200)
    part = planted.study(runs=[planted.run_of(planted_layers.contributions()), sweep])
    said = f"partial: 2 of 5 analyses; {planted.NUMBER} of 200 examples of noise on visual tokens"
    assert partial_of(part) == said
    page = words(Parsed(render_html(part)))
    assert said in page and "attrib sweep --modality text --spare-last" in page
    assert said in render_markdown(part).replace("\\", "")
    assert json.loads(render_json(part))["partial"] == said


def test_how_sure_depends_on_the_draws_the_rules_and_the_grid(study):
    assert "would hardly change it" in sureness(study) and "layers apart" in sureness(study)
    assert "No editor was trained" in sureness(study)
    loose = planted.study(runs=[planted.run_of(planted_layers.contributions(noise=9.0))])
    assert "no clear choice" in sureness(loose) and "Only one rule" in sureness(loose)


@pytest.mark.usefixtures("undrawn")
def test_a_grid_tells_what_the_choice_costs(study):
    own = tuple(study.report.layers[m][0] for m in ("text", "visual"))
    best = planted.study(grid=("g.csv", planted.grid(best=own)))
    off = planted.study(grid=("g.csv", planted.grid(best=(own[0] + 2, own[1]))))
    assert "score best of the 121 that the grid has: 90" in grid_in_short(best)
    assert "score 88, 2 less than the best of the 121" in grid_in_short(off)
    page = words(Parsed(render_html(off)))
    for pick in ("onset", "sensitivity", "patching", "middle layer", "depths 16/32 and 19/32"):
        assert pick in page
    assert "No grid of trained editors" not in page
    (table,) = content_of(off)["regret_tables"]
    assert table["rows"][0][0] == "consensus" and table["rows"][0][1][3].startswith("2")


def test_a_grid_of_one_modality_judges_that_one():
    alone = planted.grid(singles=True)
    alone = alone[alone["visual"].isna()]
    judged = planted.study(grid=("g.csv", alone)).judged
    assert set(judged.tables) == {"words alone"} and judged.cells["words alone"] == 11
    with pytest.raises(AttribError, match="no complete cell"):
        planted.study(grid=("g.csv", alone.assign(text=99)))


def test_what_is_not_shown_depends_on_what_is_known(study):
    without = " ".join(caveats(study))
    assert "Whether an edit at these layers works" in without and "24 examples only" in without
    judged = planted.study(grid=("g.csv", planted.grid()[lambda g: g["seed"] == 0]))
    with_one_seed = " ".join(caveats(judged))
    assert "Whether an edit" not in with_one_seed and "one seed a cell" in with_one_seed


def test_runs_on_other_data_are_shown_and_not_counted():
    other = planted.heatmap().result.provenance | {"data": {"name": "x", "split": "y"}}
    sweep = planted_layers.sweep("text", curve=[9.0] * planted_layers.LAYERS)
    foreign = planted.run_of(type(sweep)("sweep", sweep.frame, other))
    mixed = planted.study(runs=[*planted.runs()[:1], *planted.runs()[2:], foreign])
    assert mixed.elsewhere == {"sweep text"} and "sweep text" in mixed.missing
    assert "sensitivity" not in mixed.report.choices["text"]
    assert any("run on others" in line for line in caveats(mixed))


def test_runs_of_two_models_are_refused():
    other = planted.run_of(planted_layers.sweep("text", model={"fingerprint": "other"}))
    with pytest.raises(AttribError, match="one model"):
        planted.study(runs=[*planted.runs(), other])


@pytest.mark.usefixtures("undrawn")
def test_images_that_are_gone_are_said_and_the_rest_stays():
    gone = planted.layer_study(planted.study().runs, samples=lambda _run: {})
    assert not gone.pictures and "cannot be read any more" in words(Parsed(render_html(gone)))


def test_rows_that_were_set_aside_are_counted_and_cut(evil, page):
    assert "and 20 more" in words(evil) and "and 20 more" not in words(page)


def test_json_holds_the_content_and_no_number_json_lacks(study, content):
    plain = json.loads(render_json(study, content), parse_constant=pytest.fail)
    assert plain["layers"] == {m: list(layers) for m, layers in study.report.layers.items()}
    assert plain["headline"] == headline(study) and len(plain["samples"]) == planted.NUMBER
    assert plain["quarantined"][0]["file"] == "a.json"
    assert plain["commands"]["The same again"] == ["attrib select --model planted"]
    assert plain["provenance"]["versions"]["python"] == "3.11"


def test_commands_versions_seeds_and_digests_are_on_the_page(page):
    text = words(page)
    for said in ("attrib select --model planted", "versions.python", "resamples", "a1b2c3d4e5"):
        assert said in text


@pytest.mark.usefixtures("undrawn")
def test_all_forms_are_written_and_the_same_study_is_the_same_bytes(study, tmp_path):
    files = write_layer_report(study, tmp_path / "one")
    assert [file.name for file in files] == [
        "report.html", "report.md", "report.json", "layers.json",
    ]  # fmt: skip
    for file, again in zip(files, write_layer_report(study, tmp_path / "two"), strict=True):
        assert file.read_bytes() == again.read_bytes()
