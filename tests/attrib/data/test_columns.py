"""Columns are recognised by their names, or given; what is unclear is asked, never guessed."""

import logging

import pytest

from attrib.data.columns import ALIASES, find_columns, log_columns, parse_columns
from attrib.errors import AttribError
from attrib.pipeline.options import SourceOptions


@pytest.mark.parametrize("field", ALIASES)
def test_every_name_of_a_field_is_recognised_in_any_spelling(field):
    partners = {"loc": ["loc_ans"], "loc_ans": ["loc"], "m_loc": ["m_loc_q", "m_loc_a"],
                "m_loc_q": ["m_loc_a"], "m_loc_a": ["m_loc_q"]}.get(field, [])  # fmt: skip
    others = partners if field == "prompt" else ["prompt", *partners]
    for name in (field, *ALIASES[field]):
        for spelling in (name, name.upper(), f" {name} ", name.replace("_", " ")):
            assert find_columns([*others, spelling], None, "t").by_field[field] == spelling


def test_no_name_stands_for_two_fields():
    names = [name for field, others in ALIASES.items() for name in (field, *others)]
    assert len(names) == len(set(names))


def test_given_columns_win_and_are_not_taken_twice():
    names = ["text", "question", "label"]
    found = find_columns(names, "prompt=label,target=text", "t")
    assert found.by_field == {"prompt": "label", "target": "text"} and found.unused == ("question",)
    assert find_columns(names, {"prompt": "text", "target": ""}, "t").by_field == {"prompt": "text"}


UNCLEAR = {
    "two": (["question", "Text"], None, "t.csv: 'question' and 'Text' could each hold the prompt"),
    "none": (["a", "b"], None, "t.csv has the columns a, b: none is known to hold the prompt"),
    "no such": (["prompt"], "image=file", "image=file: no such column; t.csv has the column"),
    "half": (["prompt", "x"], "loc=x", "loc needs loc_ans as well"),
    "field": (["prompt"], "picture=x", "a table has no field 'picture'; fields are image, prompt"),
    "field twice": (["a", "b"], "prompt=a,prompt=b", "the field prompt is given twice"),
    "column twice": (["a"], "prompt=a,target=a", "a is given for prompt and target"),
    "comma": (["a, b"], "prompt=a, b", "a column with a comma in its name cannot be given"),
    "form": (["prompt"], "image", "expected FIELD=COLUMN such as image=file,prompt=question"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_refused_with_the_columns_there_are(name):
    names, given, message = UNCLEAR[name]
    with pytest.raises(AttribError) as caught:
        find_columns(names, given, "t.csv")
    assert message in str(caught.value)


def test_half_a_pair_that_was_only_recognised_is_something_else():
    assert find_columns(["prompt", "loc"], None, "t").unused == ("loc",)
    assert find_columns(["prompt", "m_loc", "m_loc_q"], None, "t").unused == ("m_loc", "m_loc_q")


def test_what_was_found_is_said_in_one_line(caplog):
    caplog.set_level(logging.INFO, "attrib")
    log_columns("t.csv", find_columns(["File", "question", "x"], None, "t.csv"))
    assert caplog.messages == ["t.csv: image = File, prompt = question; not used: x"]


def test_options_and_mappings_say_the_same():
    assert parse_columns("image=a=b, prompt = q") == {"image": "a=b", "prompt": "q"}
    assert parse_columns({"image": "x"}) == {"image": "x"} and parse_columns(None) == {}
    assert SourceOptions(columns={"image": "x", "target": ""}).columns == "image=x,target="
    with pytest.raises(ValueError, match="the column 'a, b' has a comma"):
        SourceOptions(columns={"prompt": "a, b"})
