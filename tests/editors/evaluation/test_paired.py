"""Paired differences: planted effects are found, shared items widen, seeds are drawn."""

import numpy as np
import pandas as pd
import pytest
from planted_scores import result

from attrib.errors import AttribError
from attrib.stats import clustered_interval, holm
from editors.evaluation.paired import differences


def planted(editor, values, items=None, gate="ungated"):
    made = result(0.5, editor, gate=gate, num=len(values), protocols=("paper",))
    own = (made.frame["editor"] == editor) & (made.frame["metric"] == "rel")
    made.frame.loc[own, "value"] = np.asarray(values, float)
    if items is not None:
        made.frame.loc[own, "item"] = np.asarray(items)
    return made


def rel(*results, **options):
    table = differences(results, metrics=("rel",), **options)
    return table.iloc[0]


def test_a_small_constant_difference_is_certain_because_it_is_paired():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.9, 40)  # edits differ far more than the editors do
    row = rel(planted("a", base + 0.05), planted("b", base))
    assert row["difference"] == pytest.approx(5) and row["low"] == pytest.approx(5, abs=1e-6)
    assert (row["n"], row["items"]) == (40, 40) and row["p"] < 0.01
    same = rel(planted("a", base), planted("b", base))
    assert same["difference"] == 0 and same["p"] == 1
    shuffled = rel(planted("a", rng.permutation(base) + 0.05), planted("b", base))
    assert shuffled["high"] - shuffled["low"] > 10  # of pairs that do not belong together


def test_a_clear_difference_stays_clear_among_a_hundred_comparisons():
    rng = np.random.default_rng(2)
    base = rng.uniform(0, 0.5, 200)
    clear = rel(planted("a", base + rng.normal(0.3, 0.2, 200)), planted("b", base))
    assert clear["p"] < 1e-6  # a thousand draws alone end at .002
    weak = rel(planted("a", base + rng.normal(0.02, 0.2, 200)), planted("b", base))
    more = rel(planted("a", base), planted("b", base), resamples=100)
    assert 0.002 < weak["p"] < 1 and more["p"] == 1
    null = [
        rel(planted("a", rng.normal(0.5, 0.1, 50)), planted("b", np.full(50, 0.5)))["p"]
        for _ in range(60)
    ]
    assert 0 < np.sum(np.array(null) < 0.05) < 9  # 3 are expected of 60


def test_edits_that_share_an_item_are_drawn_together():
    rng = np.random.default_rng(1)
    gain = np.repeat(rng.normal(0.05, 0.2, 5), 20)  # five facts behind a hundred edits
    base, facts = np.full(100, 0.5), np.repeat(np.arange(5), 20).astype(str)
    alone = rel(planted("a", base + gain), planted("b", base))
    shared = rel(planted("a", base + gain, facts), planted("b", base, facts))
    assert shared["items"] == 5 and shared["difference"] == alone["difference"]
    assert shared["high"] - shared["low"] > 2 * (alone["high"] - alone["low"])
    one = rel(planted("a", base, ["x"] * 100), planted("b", base, ["x"] * 100))
    assert np.isnan(one["low"])  # one fact has no spread


def test_seeds_are_drawn_as_well_and_editors_compared_with_one_or_with_all():
    base = np.full(60, 0.5)
    steady = [planted("a", base + 0.1), planted("b", base)]
    seeds = [planted("a", base + shift) for shift in (0.0, 0.1, 0.2)] + [steady[1]]
    assert rel(*steady)["high"] - rel(*steady)["low"] < 1e-6
    row = rel(*seeds)
    assert row["difference"] == pytest.approx(10) and row["high"] - row["low"] > 10
    three = [*steady, planted("c", base), planted("b", base + 0.1, gate="learned")]
    table = differences(three, metrics=("rel",))
    assert len(table) == 6 and (table["p_holm"] >= table["p"]).all()
    some = differences(three, metrics=("rel",), against="b")
    named = set(zip(some["editor"], some["other_gate"], strict=True))
    assert named == {(e, g) for e in "ac" for g in ("ungated", "learned")}
    with pytest.raises(AttribError, match="no editor 'd'"):
        differences(three, against="d")
    assert differences(steady[:1]).empty and differences([]).empty


def test_what_a_seed_does_to_both_editors_is_no_difference():
    """Runs of a seed share their gate: a bad gate lowers both."""
    effects, base = (0.1, 0.3, 0.6), np.full(20, 0.3)
    ours = [planted("a", base + effect + 0.05) for effect in effects]
    theirs = [planted("b", base + effect) for effect in effects]
    together = rel(*ours, *theirs)
    assert together["difference"] == pytest.approx(5)
    assert together["high"] - together["low"] == pytest.approx(0, abs=1e-6)
    apart = rel(*ours, *theirs[::-1])
    assert apart["high"] - apart["low"] > 10


def test_only_edits_that_every_seed_scored_are_compared():
    """A seed with fewer edits is no NaN, which would pass for p = .002; strangers are no pair."""
    rng = np.random.default_rng(3)
    one, two, base = rng.uniform(0, 1, (3, 20))
    uneven = rel(planted("a", one), planted("a", two[:15]), planted("b", base))
    even = rel(planted("a", one[:15]), planted("a", two[:15]), planted("b", base[:15]))
    assert uneven["n"] == uneven["items"] == 15
    pd.testing.assert_series_equal(uneven, even)
    other = planted("b", base)
    other.frame["example"] = "other-" + other.frame["example"]
    assert differences([planted("a", one), other]).empty
    third = planted("c", two)
    table = differences([planted("a", one), other, third], metrics=("rel",))
    assert table[["editor", "other"]].to_numpy().tolist() == [["a", "c"]]


def test_holm_and_intervals_of_shares_are_those_of_the_books():
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    four = clustered_interval(np.ones(4), np.arange(4))
    assert four == (pytest.approx(0.5101, abs=1e-4), pytest.approx(1))  # Wilson's of 4 of 4
    shared = clustered_interval(np.ones(400), np.repeat(np.arange(4), 100))
    assert shared == four  # 400 rows about four facts are four
    mixed = clustered_interval(np.tile([1.0, 0.0], 50), np.repeat(np.arange(50), 2))
    assert mixed == (0.5, 0.5)  # each item half right: nothing varies
    assert np.isnan(clustered_interval(np.array([0.5]), np.zeros(1, int))).all()
    assert pd.isna(clustered_interval(np.array([np.nan]), np.zeros(1, int))[0])
