import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.stats import (
    auc,
    bootstrap_means,
    bootstrap_medians,
    bootstrap_weights,
    interval,
    roc,
    spearman,
    weighted_means,
    wilson,
)

few = st.lists(st.integers(0, 4), min_size=1, max_size=8)


def test_the_first_row_of_weights_is_the_data_and_every_draw_has_n_examples():
    weights = bootstrap_weights(7, resamples=20, seed=3)
    assert weights.shape == (21, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 7).all()
    assert (weights == bootstrap_weights(7, resamples=20, seed=3)).all()
    assert not (weights == bootstrap_weights(7, resamples=20, seed=4)).all()


def test_a_weighted_mean_is_the_mean_of_the_repeated_examples_and_ignores_nan():
    values = np.array([[1.0, np.nan], [2.0, 5.0], [4.0, np.nan]])
    weights = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    means = weighted_means(values, weights)
    assert np.isnan(means[0, 1])  # no drawn example has a value
    assert means[0, 0] == pytest.approx(np.mean([1, 1, 4]))
    assert means[1] == pytest.approx([7 / 3, 5])


def test_draws_of_medians_and_means_scatter_around_those_of_the_data():
    values = np.random.default_rng(0).normal(size=(200, 2))
    assert np.allclose(bootstrap_means(values).mean(0), values.mean(0), atol=0.02)
    assert np.allclose(bootstrap_medians(values).mean(0), np.median(values, 0), atol=0.05)


def test_an_interval_holds_95_per_cent_and_ignores_nan():
    draws = np.arange(1001.0)
    assert interval(draws).tolist() == [25, 975]
    assert interval(np.append(draws, np.nan)).tolist() == [25, 975]
    assert np.isnan(interval(np.full((5, 2), np.nan))).all()
    assert np.isnan(interval(np.empty((0, 3)))).all()


@given(few, few)
def test_auc_is_the_share_of_pairs_won(positive, negative):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc(np.array(positive, float), np.array(negative, float)) == pytest.approx(
        np.mean(pairs)
    )


def test_weights_count_as_repeated_items():
    value = np.array([0.1, 0.4, 0.4, 0.9])
    positive = np.array([False, True, False, True])
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 2, 0]])
    repeated = np.repeat(np.arange(4), weights[1].astype(int))
    once = roc(value[repeated], positive[repeated])
    assert roc(value, positive, weights).auc[1] == pytest.approx(once.auc[0])


def test_an_auc_without_one_side_is_nan():
    assert np.isnan(auc(np.array([1.0]), np.array([])))
    assert np.isnan(roc(np.array([1.0, 2.0]), np.array([True, True])).auc[0])


def test_the_threshold_lies_half_way_below_the_level_that_separates_best():
    found = roc(np.array([0.0, 1.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert found.threshold.tolist() == [1.5]
    assert found.rates.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_has_a_width_at_zero_and_one(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)
    assert np.isnan(wilson(0, 0)).all()


def test_spearman_averages_ties_and_needs_spread():
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 90])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486833)
    assert np.isnan(spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])))
    assert np.isnan(spearman(np.array([1.0, 2]), np.array([1.0, 2])))
