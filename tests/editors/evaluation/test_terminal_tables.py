"""Scores on a terminal: every cell of the tables, in lines of at most 80 characters."""

import re

import pytest
from planted_scores import result

from editors.evaluation.tables import COST_NOTE, costs, parts_of, summary
from editors.evaluation.terminal_tables import WIDTH, terminal_tables

EDITORS = ("dualedit", "visedit", "serac", "mend", "transformer-patcher")


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("number", [1, 2, len(EDITORS)])
def test_every_cell_is_shown_and_no_line_is_wider_than_a_terminal(number):
    results = [result(0.5, name) for name in EDITORS[:number]]
    text = terminal_tables(results)
    assert max(map(len, text.splitlines())) <= WIDTH == 80 and "|" not in text
    for title, table, note in parts_of(summary(results), costs(results)):
        assert words(title) in words(text) and words(note) in words(text)
        assert set(table.columns) <= {"editor", *re.split(r"\n|\s{2,}", text)}
        cells = {str(cell) for column in table for cell in table[column]}
        assert not [cell for cell in cells if cell not in text]


def test_a_ratio_of_times_comes_with_what_it_means():
    assert "below 1" in COST_NOTE and words(COST_NOTE) in words(terminal_tables([result(0.5)]))
