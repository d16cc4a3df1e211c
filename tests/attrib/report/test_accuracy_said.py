"""The accuracy in the layer report: on the page, in Markdown and JSON, with a warning if low."""

import json
from dataclasses import replace

import pandas as pd
import planted_layer_report as planted
import planted_layers
import pytest
from test_demo_report import Parsed
from test_layer_page import words

from attrib.report.layer_report import layer_page, render_json
from attrib.report.render import render_html, render_markdown
from attrib.report.selection_summary import accuracy, low_accuracy, summarize_selection
from attrib.results import Result
from attrib.selection.accuracy import WARNING
from attrib.stats import wilson

NUMBER = planted_layers.EXAMPLES


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("attrib.plots.svg", lambda *_given, **_options: "<svg></svg>")


def study(right):
    """A study whose contributions have so many right answers; None for a run without answers."""
    table = planted_layers.contributions()
    if right is not None:
        values = [float(i < right) for i in range(NUMBER)]
        rows = pd.DataFrame({"example": [f"e{i}" for i in range(NUMBER)], "value": values})
        table = replace(table, tables={"answers": Result("answers", rows, table.provenance)})
    return planted.study(runs=[planted.run_of(table)])


def forms(study):
    page = layer_page(study)
    html = words(Parsed(render_html(page)))
    return html, render_markdown(page), json.loads(render_json(study, page))


def test_the_share_of_right_answers_has_its_interval():
    good = study(18)
    low, high = wilson(18, NUMBER)
    said = (
        f"The model gives the right answer to 18 of 24 prompts: 75 %, 95 % CI {100 * low:.0f}-"
        f"{100 * high:.0f} % (whole answers, teacher-forced)."
    )
    assert accuracy(good.report) == said and low_accuracy(good.report) == ""
    html, markdown, plain = forms(good)
    assert said in html.replace("\u00a0", " ") and "75 %" in markdown
    assert plain["accuracy"]["share"] == 0.75 and plain["accuracy"]["warning"] == ""
    assert "warning" not in html.lower()


def test_a_model_that_cannot_answer_is_warned_about_above_the_headline():
    bad = study(3)
    assert accuracy(bad.report).endswith(f"Warning: {WARNING}")
    html, markdown, plain = forms(bad)
    badge = "warning: right answers to only 3 of 24 prompts"
    assert html.index(badge) < html.index("Edit planted") < html.index("Attribution of wrong")
    assert badge in markdown and plain["accuracy"]["warning"] == WARNING


def test_nothing_is_said_where_no_run_has_answers():
    unknown = study(None)
    assert accuracy(unknown.report) == low_accuracy(unknown.report) == ""
    html, _, plain = forms(unknown)
    assert "right answer" not in html and plain["accuracy"] is None


def test_examples_that_select_nothing_are_told():
    report = study(18).report
    assert " more lack a number" not in summarize_selection(report)
    known = {**report.provenance["accuracy"], "examples": NUMBER + 3}
    more = replace(report, provenance={**report.provenance, "accuracy": known})
    assert f"from {NUMBER} examples (3 more lack a number: " in summarize_selection(more)
