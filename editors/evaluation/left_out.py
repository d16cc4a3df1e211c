"""Scores that data has no inputs for: they are left out, never counted as 0, and said."""

from collections.abc import Iterator

from attrib.data.samples import EditData
from editors.evaluation.metrics import FIVE
from editors.evaluation.protocols import METRIC_OF
from editors.evaluation.tables import NAMES

# The field of a row that gives a sample its inputs.
FIELDS = {"t_gen": "rephrase", "v_gen": "image_rephrase", "t_loc": "loc", "m_loc": "m_loc_q"}


def left_out(data: EditData) -> str:
    """The scores of the papers' five that the data has no inputs for, in one line; "" if none."""
    lines = list(_lacking(data))
    return "; ".join([*lines, "Avg needs all five"] if lines else [])


def _lacking(data: EditData) -> Iterator[str]:
    columns = data.provenance.get("columns")  # of a user's table
    fields = {metric: field for field, metric in METRIC_OF.items()}
    for metric in FIVE[1:]:
        if any(getattr(sample, fields[metric]) for sample in data):
            continue
        what = FIELDS[metric]
        if columns is not None:
            named = columns.get(what)
            what = f"no {what} column" if named is None else f"nothing in the column {named}"
        else:
            what = f"no {what} in the data"
        yield f"{what}: {NAMES[metric]} is left out"
