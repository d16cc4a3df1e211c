"""The report: one safe file, whose sentences are computed from the results."""

import re
from html.parser import HTMLParser

import numpy as np
import planted
import pytest

from attrib.report import demo_page, write_page
from attrib.report.page import LONGEST_TEXT, shown
from attrib.report.render import render_html
from attrib.report.summaries import (
    summarize_answers,
    summarize_attention,
    summarize_contributions,
    summarize_control,
    summarize_demo,
)
from attrib.results import Result

LATE = np.linspace(0, 1, 12) ** 2
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)></svg>{{7*7}}{% raw %}'


class Parsed(HTMLParser):
    """Tags with their attributes, and the text that is not style."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "deeper" / "report.html"
    return write_page(planted.study(), path).read_text()


@pytest.fixture(scope="module")
def page(html):
    return Parsed(html)


@pytest.fixture(scope="module")
def evil():
    """A page about a hostile prompt and many bad rows."""
    return Parsed(render_html(demo_page(planted.study(prompt=EVIL, quarantined=250))))


def test_the_page_is_written_whole(html):
    assert html.startswith("<!doctype html>") and html.rstrip().endswith("</html>")


def test_every_tag_is_closed_and_every_id_is_its_own(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert {"script", "iframe", "object", "embed", "link", "base", "form"}.isdisjoint(
        tag for tag, _ in page.tags
    )
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), tag


def test_the_content_policy_allows_style_and_embedded_pictures_alone(page):
    (policy,) = [a["content"] for t, a in page.tags if "http-equiv" in a and t == "meta"]
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_a_prompt_is_text_whatever_it_holds(evil, page):
    def inside_cards(page):
        tags = [tag for tag, _ in page.tags]
        return tags[tags.index("ul") : tags.index("table", tags.index("ul"))]

    assert EVIL in evil.text
    assert inside_cards(evil) == inside_cards(page)


def test_invisible_and_endless_text_is_shown_for_what_it_is():
    assert shown("a\u202eb\u200bc\x00d") == "a\\u202eb\\u200bc\\u0000d"
    assert shown("é 中 ok") == "é 中 ok"
    assert len(shown("x" * 10**6)) < LONGEST_TEXT + 10


def test_the_first_sentence_is_the_finding(page):
    text = " ".join(page.text)
    assert text.index("contribution to the answer token") < text.index(
        "Contribution of each layer to the answer"
    )


def test_figures_numbers_pictures_versions_and_commands_are_there(page):
    text = " ".join(page.text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert sum(tag == "img" for tag, _ in page.tags) == 6
    assert sum(tag == "table" for tag, _ in page.tags) == 6  # 4 figures, bad rows, versions
    assert "attrib demo --model planted --seed 0" in text and "versions.python" in text
    assert "a.json" in text and "no such file" in text


def test_every_picture_has_a_description(page):
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert sum(tag == "desc" for tag, _ in page.tags) == 4


def test_a_report_without_bad_rows_says_so(page):
    good = Parsed(render_html(demo_page(planted.study(quarantined=0))))
    assert "None." in " ".join(good.text) and "None." not in " ".join(page.text)


def test_many_bad_rows_are_counted_and_cut(evil):
    text = " ".join(evil.text)
    assert "250 of 274 rows could not be used" in text and "and 150 more" in text


def test_the_page_follows_the_theme_of_the_reader(html):
    assert "prefers-color-scheme: dark" in html


def test_the_same_study_is_the_same_page(html):
    assert render_html(demo_page(planted.study())) == html


def test_contributions_name_the_half_with_the_larger_share_and_the_peak():
    late = summarize_contributions(planted.contributions(LATE))
    early = summarize_contributions(planted.contributions(LATE[::-1]))
    assert "comes from layers 6-11 (95 % CI" in late and "highest in layer 11 " in late
    assert "comes from layers 0-5 (95 % CI" in early and "highest in layer 0 " in early
    for sentence in (late, early):
        (share,) = re.findall(r"(\d+) % of the contribution", sentence)
        assert abs(int(share) / 100 - LATE[6:].sum() / LATE.sum()) < 0.02


def test_contributions_say_which_logit_they_are_of_where_it_is_capped():
    plain = planted.contributions(LATE)
    capped = Result("contributions", plain.frame, {"model": {"name": "gemma", "soft_cap": 30.0}})
    for summarize in (summarize_contributions, lambda right: summarize_demo(right, right)):
        assert "before the model's soft-cap of 30." in summarize(capped)
        assert "soft-cap" not in summarize(plain)


def test_negative_contributions_have_no_share():
    assert "no layer contributes" in summarize_contributions(planted.contributions(-LATE - 1))


def test_the_stability_of_the_peak_depends_on_the_spread():
    stable = summarize_contributions(planted.contributions(LATE, noise=0.01))
    loose = summarize_contributions(planted.contributions(np.full(12, 0.5), noise=1.0))
    assert "(in 100 % of bootstrap samples)" in stable and "in 100 %" not in loose
    alone = summarize_contributions(planted.contributions(LATE, examples=1))
    assert "one example: no confidence interval" in alone and "CI" not in alone


def test_a_control_that_keeps_most_of_the_effect_is_reported():
    right = planted.contributions(LATE)
    falls, stays = (
        planted.contributions(0.05 * LATE, noise=0.001),
        planted.contributions(0.9 * LATE),
    )
    assert "is specific to this answer" in summarize_control(right, falls)
    assert "is not specific" in summarize_control(right, stays)
    assert "do not rely" not in summarize_demo(right, falls)
    assert "do not rely on this curve" in summarize_demo(right, stays)


def test_the_control_compares_the_examples_that_have_one():
    right, wrong = planted.contributions(LATE), planted.contributions(0.1 * LATE, noise=0.001)
    few = wrong.frame[wrong.frame["example"].isin(["e1", "e2", "e3"])]
    some = summarize_control(right, Result("wrong_key", few, {}))
    none = summarize_control(right, Result("wrong_key", few[:0], {}))
    assert "3 examples" in some and "no example has a wrong answer" in none


def test_attention_names_the_layers_of_most_and_least():
    sentence = summarize_attention(planted.attention([0.1, 0.6, 0.3, 0.05]))
    assert "most to the image in layer 1 (60 %" in sentence
    assert "least in layer 3 (5 %" in sentence
    assert "average visual token in 3 of 4 layers" in sentence  # 0.6 / 16 > 0.1 / 10 in layer 1


def test_attention_without_an_image_says_so():
    result = planted.attention([0.1, 0.6])
    frame = result.frame.copy()
    frame.loc[frame["statistic"].str.startswith("visual"), "value"] = np.nan
    assert "no visual tokens" in summarize_attention(Result("attention", frame, {}))


def test_right_answers_are_counted():
    assert "20 of 24 prompts correctly (95 % CI 64-93 %" in summarize_answers(
        planted.answers(24, 20)
    )
