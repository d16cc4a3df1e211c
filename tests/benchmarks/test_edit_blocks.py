"""Many edits: scores by the age of an edit, against a count by hand."""

from benchmarks.edit_blocks import AGES, by_age


def test_scores_by_age_are_means_of_the_newest_to_the_oldest_quarter():
    ages = [7, 0, 5, 2, 1, 6, 3, 4]
    found = [{"age": age, "rel": age / 8, "t_gen": float(age > 3), "v_gen": 1.0} for age in ages]
    rows = by_age(found)
    assert len(rows) == AGES == 4
    assert [(row["youngest"], row["oldest"]) for row in rows] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [row["rel"] for row in rows] == [0.5 / 8, 2.5 / 8, 4.5 / 8, 6.5 / 8]
    assert [row["t_gen"] for row in rows] == [0, 0, 1, 1]
    assert all(row["v_gen"] == 1.0 for row in rows)


def test_one_edit_is_one_age():
    (row,) = by_age([{"age": 0, "rel": 0.5, "t_gen": 0.0, "v_gen": 1.0}])
    assert row == {"youngest": 0, "oldest": 0, "rel": 0.5, "t_gen": 0.0, "v_gen": 1.0}
