"""An analysis of an edited model, and its numbers beside those of the unedited one."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from attrib.errors import AttribError
from attrib.model.continuation import is_rewriting
from attrib.pipeline.analysis import Analysis
from attrib.pipeline.run import complete, start
from attrib.results import Result
from attrib.runs import Rank

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM


def run_edited(analysis: Analysis, vlm: "VLM", data: "EditData", edit: Any) -> Result:
    """The result of an analysis while an edit is applied; nothing is kept on disk.

    Raises:
        AttribError: The edit rewrites the prompt, or hides what the analysis reads.
    """
    # Such an edit writes at the positions of a whole prompt: no part of one can be run alone.
    analysis.whole_passes = hasattr(edit, "sites")
    try:
        with TemporaryDirectory() as folder, edit.applied(vlm):
            if is_rewriting(vlm):
                raise AttribError(
                    "this edit rewrites the prompt, so its positions are not those of the question;"
                    " analyse an edit of weights or of hidden states"
                )
            return complete(start(analysis, vlm, data, folder, rank=Rank()), analysis)
    finally:
        analysis.whole_passes = False


def side_by_side(before: Result, after: Result, statistics: Sequence[str] = ()) -> pd.DataFrame:
    """Values per layer, or per method, before and after; in columns by what else is varied.

    Args:
        before: Of the unedited model.
        after: The same analysis of the edited model.
        statistics: Those to show, where a table has several.
    """
    sides = {}
    for name, result in (("before", before), ("after", after)):
        varied = [n for n in ("module", "statistic", "sigma") if n in result.frame]
        each = "layer" if "layer" in result.frame else "method"
        groups, values = result.matrix([*varied, each])
        means = groups.assign(value=values.mean(0))
        if statistics:
            means = means[means["statistic"].isin(list(statistics))]
        wide = means.pivot_table("value", each, varied or None, dropna=False)
        wide.columns = [_heading(varied, key) for key in wide.columns]  # sorted as numbers before
        sides[name] = wide
    columns = [
        sides[name][[column]].rename(columns={column: f"{column} {name}"})
        for column in sides["before"]
        for name in sides
    ]
    return pd.concat(columns, axis=1)


def _heading(varied: Sequence[str], key: Any) -> str:
    """The heading of a column: what it varies, or "value" where nothing is varied."""
    values = key if isinstance(key, tuple) else (key,)
    return " ".join(map(_label, varied, values)) or str(key)


def _label(column: str, value: Any) -> str:
    """A value in the heading of a column; a number says of what."""
    return f"sigma {value:g}" if column == "sigma" else str(value)
