"""Units: cut by row number, named by what they are made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.data import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.runs import ROWS, split


def sample(row, name=None):
    meta = {} if row is None else {"row": row}
    return EditSample(name or f"e{row}", EditRequest(None, "What?", "red"), meta=meta)


@given(st.sets(st.integers(0, 200)))
def test_every_sample_is_in_one_unit_and_the_order_stays(rows):
    samples = [sample(row) for row in sorted(rows)]
    units = split(samples)
    assert [s for unit in units for s in unit.samples] == samples
    assert all(s.meta["row"] // ROWS == unit.index for unit in units for s in unit.samples)
    assert len({unit.key for unit in units}) == len(units)


def test_a_missing_row_changes_its_own_unit_only():
    whole = split([sample(row) for row in range(3 * ROWS)])
    less = split([sample(row) for row in range(3 * ROWS) if row != ROWS + 1])
    same = [a.key == b.key for a, b in zip(whole, less, strict=True)]
    assert same == [True, False, True]


def test_a_longer_dataset_keeps_the_full_units():
    short, long = (split([sample(row) for row in range(n)]) for n in (20, 40))
    assert short[0].key == long[0].key and short[1].key != long[1].key


def test_samples_without_row_numbers_are_cut_by_position():
    units = split([sample(None, f"e{i}") for i in range(ROWS + 1)])
    assert [len(unit.samples) for unit in units] == [ROWS, 1]


def test_rows_out_of_order_keep_the_order_of_the_data():
    units = split([sample(100), sample(3), sample(50)])
    assert [[s.id for s in unit.samples] for unit in units] == [["e100", "e3", "e50"]]


def test_two_samples_of_one_name_are_refused():
    with pytest.raises(AttribError, match="two samples are named 'e1'"):
        split([sample(1), sample(1)])
