"""The layer report: one safe page, Markdown and JSON, all of the same computed content."""

import base64
import hashlib
import html
import json
import re
import sys
from dataclasses import replace
from functools import partial

import pandas as pd
import planted_layer_report as planted
import planted_layers
import pytest
from PIL import Image
from planted_layer_report import EVIL
from test_demo_report import Parsed

from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.report import write_layer_report
from attrib.report.confidence import caveats
from attrib.report.heatmap_cards import answers_of, heatmap_cards
from attrib.report.layer_report import layer_page, render_json
from attrib.report.render import render_html, render_markdown
from attrib.report.selection_summary import confidence, headline, rationale, summarize_regret
from attrib.results import Result
from attrib.selection import select_layers


def no_figure(*_given, **_options):
    return "<svg></svg>"


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Draws of examples take long; 200 tell the planted layers apart."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(select_layers, resamples=200)
        # By module: the package has a function of the same name.
        patch.setattr(sys.modules["attrib.report.layer_study"], "select_layers", few)
        yield


@pytest.fixture(scope="module")
def study():
    return planted.study()


@pytest.fixture(scope="module")
def content(study):
    return layer_page(study)


@pytest.fixture(scope="module")
def page(content):
    return Parsed(render_html(content))


def html_of(study):
    return render_html(layer_page(study))


@pytest.fixture(scope="module")
def hostile():
    """A study whose prompts, file names and model name are hostile."""
    return planted.study(prompt=EVIL, name=EVIL, file=EVIL, number=120)


@pytest.fixture(scope="module")
def evil(hostile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attrib.plots.svg", no_figure)
        return Parsed(html_of(hostile))


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


def test_the_content_policy_allows_the_slider_s_script_and_no_other(content, page):
    (policy,) = [a["content"] for t, a in page.tags if "http-equiv" in a and t == "meta"]
    (script,) = re.findall(r"<script>(.*?)</script>", render_html(content), re.DOTALL)
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
    without = html_of(planted.study(runs=planted.runs()))
    assert "script" not in without
    assert "run attrib heatmap" in without


def test_hostile_text_is_text_in_prompts_file_names_and_model_names(evil, page):
    assert words(evil).count(EVIL) > 10  # title, headline, sentences, cards, samples, rows
    assert {tag for tag, _ in evil.tags} <= {tag for tag, _ in page.tags}
    assert [tag for tag, _ in evil.tags].count("script") == 1
    images = [[tag for tag, _ in p.tags].count("img") for p in (evil, page)]
    assert images[0] == images[1]


@pytest.mark.usefixtures("undrawn")
def test_hostile_text_is_text_in_markdown(hostile):
    text = render_markdown(layer_page(hostile))
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert not re.search(r"<\w|(?<!\\)\{\{|(?<!\\)\]\(", prose)
    plain = html.unescape(re.sub(r"\\([\\`*_\[\]{}|#!~$])", r"\1", prose))
    assert plain.count(EVIL) > 5


def test_the_first_sentence_names_the_chosen_layers(study, page):
    ((text_layer,), (visual_layer,)) = study.report.layers.values()
    said = f"Edit planted at layer {text_layer}, for the text tokens and the visual tokens."
    assert text_layer == visual_layer and headline(study.report) == said
    text = words(page)
    assert text.index(said) < text.index("Why these layers") < text.index("Confidence")
    two = replace(study.report, layers={"text": [4], "visual": [7]})
    assert (
        headline(two)
        == "Edit planted: the text tokens at layer 4 and the visual tokens at layer 7."
    )


def test_the_same_layer_for_both_is_named_once(study):
    same = replace(study.report, layers={"text": [4], "visual": [4]})
    none = replace(study.report, layers={"text": [4, 2], "visual": []})
    assert headline(same).startswith("Edit planted at layer 4, for the text tokens and the visual")
    assert "the text tokens at layer 4 (then 2)" in headline(none)
    assert "No layer can be chosen for the visual tokens" in headline(none)


def test_the_rationale_has_the_shares_of_the_chosen_layer_and_of_the_runner_up(study):
    first, *sentences = rationale(study.report)
    assert "scores well under every rule" in first and len(sentences) == 2
    for modality, sentence in zip(("text", "visual"), sentences, strict=True):
        choices = study.report.choices[modality]
        own = study.report.layers[modality][0]
        share = choices["patching"].scores[own] / max(
            score for score in choices["patching"].scores if score is not None
        )
        assert f"{100 * share:.0f} % of patching's" in sentence
        assert f"The runner-up, layer {choices['consensus'].ranking[1]}" in sentence


def blocks(page, kind):
    return [one.content for part in page.sections for one in part.blocks if one.kind == kind]


def test_every_figure_has_its_numbers_and_marks_the_chosen_layers(page, content):
    figures = [figure for some in blocks(content, "figures") for figure in some.figures]
    assert len(figures) == 8 and sum(tag == "svg" for tag, _ in page.tags) == len(figures)
    for figure in figures:
        assert "chosen" in figure.svg and len(figure.table.rows) == planted_layers.LAYERS
        assert set(figure.table.chosen) <= {layer for layer, _ in figure.table.rows}
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
    page = Parsed(html_of(planted.study(runs=[*planted.runs(), planted.heatmap(rows=0)])))
    assert any(a.get("class") == "strip" for _, a in page.tags)
    assert "token 3" in words(page)


def test_a_whole_study_is_not_called_partial(study, page):
    assert study.partial == "" and "partial" not in words(page)


@pytest.mark.usefixtures("undrawn")
def test_a_partial_study_says_what_is_there_of_how_much():
    sweep = planted.run_of(planted_layers.sweep("visual"), rows=200)
    part = planted.study(runs=[planted.run_of(planted_layers.contributions()), sweep])
    said = f"partial: 2 of 5 analyses; {planted.NUMBER} of 200 examples of noise on visual tokens"
    assert part.partial == said
    page = words(Parsed(html_of(part)))
    assert said in page and "attrib sweep --modality text --spare-last" in page
    assert said in render_markdown(layer_page(part)).replace("\\", "")
    assert json.loads(render_json(part, layer_page(part)))["partial"] == said


def test_confidence_depends_on_the_draws_and_the_rules(study, page):
    stable = confidence(study.report)
    assert "The choice is stable" in stable and "Individual rules disagree by up to" in stable
    assert "No editor was trained" in words(page)
    loose = planted.study(runs=[planted.run_of(planted_layers.contributions(noise=9.0))])
    unclear = confidence(loose.report)
    assert "The choice is unclear" in unclear and "Only one rule" in unclear


@pytest.mark.usefixtures("undrawn")
def test_a_grid_tells_what_the_choice_costs(study):
    own = tuple(study.report.layers[m][0] for m in ("text", "visual"))
    best = planted.study(grid=("g.csv", planted.grid(best=own)))
    off = planted.study(grid=("g.csv", planted.grid(best=(own[0] + 2, own[1]))))
    assert "score 90.00; the best of 121 cells" in summarize_regret(best.evaluation, "consensus")
    assert "scores 90.00: regret 2.00" in summarize_regret(off.evaluation, "consensus")
    page = words(Parsed(html_of(off)))
    for pick in ("onset", "sensitivity", "patching", "middle layer", "depths 16/32 and 19/32"):
        assert pick in page
    assert "regret of the choice is unknown" not in page
    (table,) = [t for t in blocks(layer_page(off), "table") if t.title.startswith("Edited: both")]
    assert table.rows[0][0] == "consensus" and table.rows[0][1][3].startswith("2")


def test_a_grid_of_one_modality_judges_that_one():
    alone = planted.grid(singles=True)
    alone = alone[alone["visual"].isna()]
    judged = planted.study(grid=("g.csv", alone)).evaluation
    assert set(judged.regret) == {"text alone"} and judged.cells["text alone"] == 11
    with pytest.raises(AttribError, match="no complete cell"):
        planted.study(grid=("g.csv", alone.assign(text=99)))


def test_what_is_not_shown_depends_on_what_is_known(study):
    without = " ".join(caveats(study))
    assert "Whether an edit at these layers works" in without and "only 24 examples" in without
    judged = planted.study(grid=("g.csv", planted.grid()[lambda g: g["seed"] == 0]))
    with_one_seed = " ".join(caveats(judged))
    assert "Whether an edit" not in with_one_seed and "one seed per cell" in with_one_seed


def test_runs_on_other_data_are_shown_and_not_counted():
    other = planted.heatmap().result.provenance | {"data": {"name": "x", "split": "y"}}
    sweep = planted_layers.sweep("text", curve=[9.0] * planted_layers.LAYERS)
    foreign = planted.run_of(type(sweep)("sweep", sweep.frame, other))
    mixed = planted.study(runs=[*planted.runs()[:1], *planted.runs()[2:], foreign])
    assert mixed.other_data == {"sweep text"} and "sweep text" in mixed.missing
    assert "sensitivity" not in mixed.report.choices["text"]
    assert any("run on other data" in line for line in caveats(mixed))


def test_runs_of_two_models_are_refused():
    other = planted.run_of(planted_layers.sweep("text", model={"fingerprint": "other"}))
    with pytest.raises(AttribError, match="one model"):
        planted.study(runs=[*planted.runs(), other])


def test_each_image_of_a_prompt_has_a_card_of_its_own():
    run, prompt = planted.heatmap(examples=1), "Which one?"
    frame, grids = run.result.frame, run.tables["grids"].frame
    both = [table.assign(image=i, value=table["value"] * (1 + i))
            for table in (frame, grids) for i in (0, 1)]  # fmt: skip
    made = run.result.provenance
    two = planted.run_of(
        Result("heatmap", pd.concat(both[:2]), made),
        grids=Result("grids", pd.concat(both[2:]), made),
    )
    images = [Image.new("RGB", (32, 24), color) for color in ("teal", "red")]
    samples = {"e0": EditSample("e0", EditRequest(images, prompt, "red"))}
    cards = heatmap_cards(two, samples, 1)
    assert [card.prompt for card in cards] == [f"{prompt} (image {i} of 2)" for i in (1, 2)]
    assert [card.maps[0].high for card in cards] == [1.0, 2.0] and cards[0].image != cards[1].image
    said = pd.DataFrame({"example": ["e0"], "answer": ["blue"], "truth": ["red"], "value": [0.0]})
    answers = answers_of([two, planted.run_of(run.result, answers=Result("answers", said, made))])
    cards = heatmap_cards(two, samples, 1, answers)
    assert cards[1].prompt == f"{prompt} (image 2 of 2) The model says “blue”: “red” is right."
    assert answers_of([two]) == {}


@pytest.mark.usefixtures("undrawn")
def test_images_that_are_gone_are_said_and_the_rest_stays():
    gone = planted.layer_study(planted.study().runs, samples=lambda _run: {})
    assert not gone.cards and "cannot be read any more" in words(Parsed(html_of(gone)))


def test_rows_that_were_set_aside_are_counted_and_cut(evil, page):
    assert "and 20 more" in words(evil) and "and 20 more" not in words(page)


def test_json_holds_the_content_and_no_number_json_lacks(study, content):
    plain = json.loads(render_json(study, content), parse_constant=pytest.fail)
    assert plain["layers"] == {m: list(layers) for m, layers in study.report.layers.items()}
    assert plain["headline"] == headline(study.report) and len(plain["samples"]) == planted.NUMBER
    assert plain["quarantined"][0]["file"] == "a.json"
    assert plain["commands"]["Reproduce"] == ["attrib select --model planted"]
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
