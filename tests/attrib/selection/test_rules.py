"""The rules themselves: exact against brute force, and combined as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attrib.selection.rules import (
    FLOOR,
    RULES,
    consensus,
    crossover,
    relative,
    reliability,
    step_score,
)

curves = arrays(float, (3, 8), elements=st.floats(-4, 4, width=16))


def brute_force(curve):
    """Share of the squared error that the best two means of each break point take away."""
    whole = ((curve - curve.mean()) ** 2).sum()
    shares = []
    for k in range(1, len(curve)):
        low, high = curve[:k], curve[k:]
        left = ((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum()
        shares.append(np.sign(high.mean() - low.mean()) * (whole - left) / whole if whole else 0)
    return shares


@given(curves)
def test_the_rise_is_the_least_squares_change_point_of_two_means(draws):
    found = step_score(draws)
    assert np.isnan(found[:, -1]).all()
    for curve, scores in zip(draws, found, strict=True):
        assert np.allclose(scores[:-1], brute_force(curve), atol=1e-6)


@pytest.mark.parametrize("at", range(1, 8))
def test_a_step_is_found_right_before_it_and_a_fall_speaks_for_no_layer(at):
    step = (np.arange(8) >= at).astype(float)[None]
    assert np.nanargmax(step_score(step)) == at - 1 and np.isclose(np.nanmax(step_score(step)), 1)
    assert np.nanmax(step_score(-step)) < 0
    assert np.nanmax(step_score(0 * step + 0.3)) == 0


def test_passing_is_highest_where_the_curves_cross():
    holds = np.array([[1, 1, 1, 0, 0, 0.0]])
    assert crossover(holds, 1 - holds)[0, :-1].tolist() == [0, 0, 1, 0, 0]
    slow = np.linspace(1, 0, 11)[None]
    assert np.nanargmax(crossover(slow, 1 - slow)) in (4, 5)


def test_the_consensus_of_one_rule_is_that_rule():
    scores = np.abs(np.random.default_rng(0).normal(size=(1, 6)))
    alone, weights = consensus({"onset": scores})
    assert np.allclose(alone, np.maximum(relative(scores), FLOOR)) and weights == {"onset": 1.0}


def test_a_flat_rule_has_no_say_and_opposite_rules_meet_in_the_middle():
    clear, flat = np.array([[1, 2, 4, 3, 1.0]]), np.full((1, 5), 7.0)
    both, weights = consensus({"sensitivity": clear, "patching": flat})
    assert np.allclose(both, relative(clear)) and weights["patching"] == 0
    up = np.linspace(0.1, 1, 9)[None]
    assert consensus({"onset": up, "sensitivity": up[:, ::-1]})[0].argmax() == 4


def test_what_chance_decides_weighs_less():
    rng, curve = np.random.default_rng(0), np.array([0, 1, 3, 2, 0.5])
    sure, unsure = (curve + size * rng.normal(size=(200, 5)) for size in (0.01, 3.0))
    assert reliability(sure) > 0.99 and reliability(unsure) < 0.7
    shifted = consensus({"onset": sure, "sensitivity": unsure})[1]
    assert shifted["onset"] > shifted["sensitivity"]


def test_only_the_rules_of_the_papers_and_patching_vote():
    assert [name for name, rule in RULES.items() if rule.vote] == [
        "onset", "sensitivity", "patching"
    ]  # fmt: skip
