"""Scores and costs of a few editors as a terminal shows them: a row per score."""

from collections.abc import Sequence
from textwrap import fill

import pandas as pd

from attrib.results import Result
from editors.evaluation.tables import KEYS, costs, parts_of, summary

WIDTH = 80


def terminal_tables(results: Sequence[Result]) -> str:
    """The tables of `editors.evaluation.tables`, turned: a row per score, a column per editor.

    No line is longer than 80 characters, unless a single name is: columns that do not fit side by
    side follow below.
    """
    parts = parts_of(summary(results), costs(results))
    return "\n\n".join(_part(title, table, note) for title, table, note in parts)


def _part(title: str, table: pd.DataFrame, note: str) -> str:
    editor, *_ = KEYS
    turned = table.set_index(editor).T.rename_axis(index=None, columns=None)
    text = turned.to_string(line_width=WIDTH)
    return "\n\n".join(filter(None, (fill(title, WIDTH), text, fill(note, WIDTH))))
