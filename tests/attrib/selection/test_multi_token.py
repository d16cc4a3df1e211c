"""Layers for answers of several words: the earliest that a word asks for, and what spoke for it."""

import planted_layers as planted
import pytest

from attrib.errors import AttribError
from attrib.report.selection_summary import summarize_selection
from attrib.selection import LayerReport, combine_words, select_layers


def word(visual, last, **more):
    """What patching says of a word that leaves the visual tokens, and is in `last`, that early."""
    return select_layers([planted.patching(visual=visual, last=last)], "patching", **more)


def test_the_earliest_layer_that_a_word_asks_for_is_chosen_for_each_modality():
    reports = [word(8, 6), word(3, 9), word(7, 7)]
    assert [one.layers for one in reports] == [
        {"text": [5], "visual": [7]}, {"text": [8], "visual": [2]}, {"text": [6], "visual": [6]}
    ]  # fmt: skip
    whole = combine_words(reports)
    assert whole.layers == {"text": [5], "visual": [2]}
    assert whole.choices["text"] == reports[0].choices["text"]
    assert whole.choices["visual"] == reports[1].choices["visual"]
    assert summarize_selection(whole).splitlines()[:4] == [
        "Word 1 of the answer: text 5, visual 7",
        "Word 2 of the answer: text 8, visual 2",
        "Word 3 of the answer: text 6, visual 6",
        "The earliest layer of all words is selected.",
    ]


def test_the_order_of_words_does_not_matter():
    reports = [word(8, 6), word(3, 9)]
    assert combine_words(reports).layers == combine_words(reports[::-1]).layers


def test_one_word_is_what_it_was_and_none_is_refused():
    one = word(8, 6)
    assert combine_words([one]) == one and "Word" not in summarize_selection(one)
    with pytest.raises(AttribError, match="no report of any answer word"):
        combine_words([])


def test_a_word_that_says_nothing_of_a_modality_does_not_choose_for_it():
    silent = select_layers([planted.sweep("text")], "sensitivity")
    spoken = select_layers([planted.sweep("text"), planted.sweep("visual")], "sensitivity")
    assert not silent.layers["visual"]
    assert combine_words([silent, spoken]).layers["visual"] == spoken.layers["visual"]
    assert combine_words([silent, silent]).layers["visual"] == []


def test_a_report_of_several_words_comes_back_from_its_file(tmp_path):
    whole = combine_words([word(8, 6), word(3, 9)])
    back = LayerReport.load(whole.save(tmp_path / "layers.json"))
    assert back.layers == whole.layers and summarize_selection(back) == summarize_selection(whole)
