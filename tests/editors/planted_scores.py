"""Planted scores: a result whose means are known."""

import pandas as pd

from attrib.results import Result
from editors.evaluation.scoring import COLUMNS


def result(rel, editor="mine", gate="ungated", model="m", num=4, protocols=("paper", "generate")):
    """Every example has the same reliability; the unedited model has none."""
    rows = []
    for i in range(num):
        for protocol in protocols:
            for name, which, value in (("unedited", "-", 0.0), (editor, gate, rel)):
                rows.append((f"e{i}", name, which, "color", protocol, "rel", value))
                rows.append((f"e{i}", name, which, "color", protocol, "m_loc", 1.0))
        for cost, value in {"edit_ms": i, "bytes": 8, "pass_ms": 2, "edited_pass_ms": 3}.items():
            rows.append((f"e{i}", editor, gate, "color", "cost", cost, float(value)))
    made = {"model": {"name": model, "fingerprint": "f"}, "data": {"name": "d", "split": "test"}}
    rows = [(*row, row[0]) for row in rows]  # every example is an item of its own
    return Result("scores", pd.DataFrame(rows, columns=list(COLUMNS)), made)
