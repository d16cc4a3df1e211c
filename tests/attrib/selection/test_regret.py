"""Regret and rank correlations on planted grids."""

import numpy as np
import pandas as pd
import planted_layers as planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.errors import AttribError
from attrib.selection import (
    evaluate_on_grid,
    fixed_picks,
    picks_of,
    rank_correlations,
    regret,
    select_layers,
)
from attrib.stats import spearman

BEST = (2, 4)


def grid(seeds=3, layers=8, noise=0.0, text_alone=False):
    """Scores fall by one point a layer from the best pair; a seed adds its number to all."""
    rng = np.random.default_rng(0)
    rows = [
        (t, v, seed, 90 - abs(t - BEST[0]) - abs(v - BEST[1]) + seed + noise * rng.normal())
        for t in range(layers) for v in range(layers) for seed in range(seeds)
    ]  # fmt: skip
    if text_alone:
        rows += [(t, None, s, 50 + t + s) for t in range(layers) for s in range(seeds)]
    return pd.DataFrame(rows, columns=["text", "visual", "seed", "score"])


def judged(table, *pick):
    return regret(table, {"one": pick}).iloc[0]


def test_the_best_cell_has_no_regret_and_others_what_they_lack():
    row = judged(grid(), *BEST)
    assert row["regret"] == row["low"] == row["high"] == row["held_out"] == 0 and row["seeds"] == 3
    row = judged(grid(), 5, 3)
    assert row["regret"] == 4 and (row["best_text"], row["best_visual"]) == BEST
    assert row["score"] == 87 and row["best"] == 91


def test_the_spread_over_seeds_is_that_of_the_differences():
    table = grid()
    chosen = (table["text"] == 0) & (table["visual"] == 0)
    table.loc[chosen, "score"] -= table.loc[chosen, "seed"] * 2
    row = judged(table, 0, 0)
    assert (row["low"], row["regret"], row["high"]) == (6, 8, 10)


def test_held_out_regret_leaves_out_the_luck_of_the_best():
    rng = np.random.default_rng(1)
    luck, fair = [], []
    for _ in range(40):
        table = grid(layers=5).assign(score=rng.normal(size=75))
        row = judged(table, 0, 0)
        luck.append(row["regret"])
        fair.append(row["held_out"])
    assert np.mean(luck) > 0.8 and abs(np.mean(fair)) < 0.35
    assert np.isnan(judged(grid(seeds=1), 0, 0)["held_out"])


def test_a_pick_is_compared_with_its_own_kind():
    row = judged(grid(text_alone=True), 3, None)
    assert row["regret"] == 4 and row["best_text"] == 7 and row["best_visual"] is None
    assert judged(grid(text_alone=True), 3, 4)["best"] == 91


def test_cells_without_all_seeds_do_not_count():
    table = grid()
    best = (table["text"] == BEST[0]) & (table["visual"] == BEST[1]) & (table["seed"] == 2)
    table = table[~best]
    assert judged(table, 2, 3)["regret"] == 0
    with pytest.raises(AttribError, match=r"no complete cell \(text, visual\) \(2, 4\)"):
        judged(table, *BEST)


def test_a_grid_without_its_columns_or_cells_is_refused():
    with pytest.raises(AttribError, match="seed is missing"):
        judged(grid().drop(columns="seed"), 0, 0)
    with pytest.raises(AttribError, match="of this kind it has no cell"):
        judged(grid(), None, 2)
    apart = pd.DataFrame({"text": [0, 1], "visual": [0, 1], "seed": [0, 1], "score": [1.0, 2.0]})
    with pytest.raises(AttribError, match="for every seed"):
        judged(apart, 0, 0)


def test_fixed_picks_are_those_of_the_papers_and_stay_below_the_last_layer():
    first = {"first layer": (0, 0), "layer 1": (1, 1)}
    middle, papers = "middle layer", "depths 16/32 and 19/32"
    assert fixed_picks(32) == {middle: (16, 16), papers: (16, 19), **first}
    assert fixed_picks(10) == {middle: (5, 5), papers: (5, 6), **first}
    assert set(fixed_picks(2).values()) == {(0, 0)}


def test_a_random_cell_scores_the_mean_of_its_kind():
    report = select_layers(planted.evidence())
    for table in (grid(), grid(text_alone=True)):
        for kind, found in evaluate_on_grid(table, report).regret.items():
            row = found.set_index("pick").loc["random cell"]
            pairs = table["text"].notna() & table["visual"].notna()
            own = table[pairs if kind == "both" else ~pairs]
            assert row["score"] == pytest.approx(own["score"].mean()), kind
            assert row["best"] - row["score"] == pytest.approx(row["regret"])
            assert 0 < row["regret"] <= found["regret"].max()


def test_every_rule_with_both_layers_is_a_pick():
    report = select_layers([planted.contributions(), planted.sweep("visual")])
    step = planted.STEP - 1
    assert picks_of(report)["onset"] == (step, step) and "sensitivity" not in picks_of(report)


def scores(**by_name):
    rows = [("text", name, layer, value) for name, values in by_name.items()
            for layer, value in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows, columns=["modality", "evidence", "layer", "value"])


def test_correlations_tell_what_predicts_the_grid():
    truth = -np.abs(np.arange(8) - BEST[0])
    table = rank_correlations(grid(), scores(right=truth, wrong=-truth, flat=0 * truth))
    found = table.set_index("evidence")["correlation"]
    assert np.isclose(found["right"], 1) and np.isclose(found["wrong"], -1)
    assert np.isnan(found["flat"]) and table["evidence"].iloc[0] == "right"
    row = table.iloc[0]
    assert row["layers"] == 8 and np.isclose(row["low"], 1) and np.isclose(row["high"], 1)


def test_single_modality_cells_go_first_and_missing_layers_are_passed_over():
    rising = scores(rising=np.arange(6))
    assert rank_correlations(grid(text_alone=True), rising)["correlation"].tolist() == [1.0]
    assert rank_correlations(grid(), rising)["correlation"].iloc[0] < 0
    assert rank_correlations(grid(text_alone=True), rising)["layers"].tolist() == [6]


@given(st.lists(st.integers(0, 5), min_size=3, max_size=9), st.randoms())
def test_rank_correlation_is_that_of_pandas(values, random):
    one = np.array(values, float)
    other = np.array(random.sample(values, len(values)), float)
    if np.ptp(one) > 0:
        frame = pd.DataFrame({"one": one, "other": other})
        assert np.isclose(spearman(one, other), frame.corr(method="spearman").iloc[0, 1])
        assert np.isclose(spearman(one, np.exp(one)), 1)


def test_a_pick_that_the_grid_lacks_is_unknown_beside_those_it_has():
    table = grid()
    table = table[~((table["text"] == 5) & (table["visual"] == 5))]
    rows = regret(table, {"there": (2, 3), "lacking": (5, 5)}).set_index("pick")
    assert rows.loc["there", "regret"] == 1
    assert np.isnan(rows.loc["lacking", "regret"])
    assert (rows.loc["lacking", "text"], rows.loc["lacking", "visual"]) == (5, 5)
