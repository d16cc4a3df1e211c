"""The model's accuracy on the samples of a selection: what their attribution can be about."""

from collections.abc import Iterable
from typing import Any

from attrib.results import Result
from attrib.stats import wilson

ACCURACY = "accuracy"  # in a report's provenance
ENOUGH = 0.5
WARNING = (
    "Attribution of wrong answers says little about how the model finds right ones: take a model "
    "or samples with an accuracy above 50 %. Answers are compared with those of the data; where "
    "these are edits that the model has yet to learn, a low accuracy is expected, and the "
    "attribution is of the answers before the edit."
)


def accuracy_of(results: Iterable[Result]) -> dict[str, Any]:
    """The share of right answers with Wilson's 95 % interval; empty if no result has answers.

    Returns:
        `right` of `examples`, `share`, `low`, `high`, and `warning`: "" from `ENOUGH` on.
    """
    tables = (result.tables["answers"] for result in results if "answers" in result.tables)
    answers = next((table for table in tables if len(table.frame)), None)
    if answers is None:
        return {}
    right, number = int(sum(answers.frame["value"])), answers.examples
    low, high = wilson(right, number)
    share = right / number
    return {
        "right": right, "examples": number, "share": share, "low": low, "high": high,
        "warning": "" if share >= ENOUGH else WARNING,
    }  # fmt: skip
