"""Separation: AUC and threshold are those of counting by hand; intervals draw examples whole."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from attrib.analyses.gate_roc import ANY, best_layer, gate_roc, overall, roc
from attrib.errors import AttribError
from attrib.results import Result

KINDS = ("text_generality", "visual_generality", "text_locality", "visual_locality")


def study(values, layers=(0,), tokens=("prompt_last",)):
    """A result with `values(example, layer, token, relation)` for 30 examples."""
    rows = [
        (f"e{i}", layer, token, relation, values(i, layer, token, relation))
        for i, layer, token, relation in product(range(30), layers, tokens, KINDS)
    ]
    frame = pd.DataFrame(rows, columns=["example", "layer", "token", "relation", "value"])
    return Result("gate", frame, {"seed": 3})


def apart(gap, seed=0, **axes):
    """Generality lies `gap` standard deviations above locality."""
    rng = np.random.default_rng(seed)
    return study(lambda *at: rng.normal() + gap * at[3].endswith("generality"), **axes)


def row(table, relation=ANY):
    (found,) = table[table["relation"] == relation].to_dict("records")
    return found


def counted(value, positive, weights):
    """AUC, best threshold and its open rates, by looking at every pair and every threshold."""
    pairs = list(product(np.flatnonzero(positive), np.flatnonzero(~positive)))
    won = [(value[i] > value[j]) + (value[i] == value[j]) / 2 for i, j in pairs]
    mass = [weights[i] * weights[j] for i, j in pairs]

    def opened(at, side):
        return (weights * side * (value >= at)).sum() / (weights * side).sum()

    gains = {at: opened(at, positive) - opened(at, ~positive) for at in np.unique(value)}
    best = max(at for at in gains if gains[at] >= max(gains.values()) - 1e-12)
    return np.average(won, weights=mass), opened(best, positive), opened(best, ~positive)


@pytest.mark.parametrize("decimals", [8, 1])  # 1: many ties
@pytest.mark.parametrize("seed", range(4))
def test_auc_and_threshold_equal_counting(seed, decimals):
    rng = np.random.default_rng(seed)
    positive = rng.random(40) < 0.4
    value = np.round(rng.normal(size=40) + positive, decimals)
    weights = np.stack([np.ones(40), *rng.integers(0, 3, (2, 40))], 1).astype(np.float32)
    told = roc(value, positive, weights.T)
    for draw in range(3):
        auc, true, false = counted(value, positive, weights[:, draw])
        assert np.isclose(told.auc[draw], auc)
        here = value >= told.threshold[draw]
        shares = [np.average(here[s], weights=weights[s, draw]) for s in (positive, ~positive)]
        assert np.isclose(shares[0] - shares[1], true - false)
    _, true, false = counted(value, positive, weights[:, 0])
    assert np.allclose(told.rates[0], [true, false])
    fixed = value >= told.threshold[0]  # rates of draws are those of the first threshold
    assert np.isclose(told.rates[1, 0], np.average(fixed[positive], weights=weights[positive, 1]))


def test_separate_groups_have_auc_1_and_equal_groups_about_a_half():
    far, same = gate_roc(apart(9.0)), gate_roc(apart(0.0))
    assert row(far)["auc"] == row(far)["auc_low"] == row(far)["true_open"] == 1
    assert row(far)["false_open"] == 0
    assert row(same)["auc_low"] < 0.5 < row(same)["auc_high"]


def test_the_threshold_is_the_middle_of_the_gap():
    result = study(lambda *at: 0.9 if at[3].endswith("generality") else 0.1)
    told = row(gate_roc(result))
    assert told["threshold"] == told["threshold_low"] == pytest.approx(0.5)
    assert (told["published_true_open"], told["published_false_open"]) == (1, 0)


def test_equal_similarities_separate_nothing():
    told = row(gate_roc(study(lambda *_: 1.0)))
    assert told["auc"] == 0.5 and told["true_open"] == told["false_open"] == 1


def test_differences_of_rounding_are_ties():
    told = row(gate_roc(study(lambda i, *_: 1.0 - 1e-8 * (i % 3))))
    assert told["auc"] == 0.5


def test_each_kind_of_locality_and_all_together_are_compared_with_generality():
    def value(_i, _layer, _token, relation):
        return {"text_locality": 0.0, "visual_locality": 1.0}.get(relation, 0.5)

    table = gate_roc(study(value))
    assert [row(table, k)["auc"] for k in ("text_locality", "visual_locality", ANY)] == [1, 0, 0.5]


def test_intervals_are_seeded_and_resample_examples_not_inputs():
    result = apart(1.0)
    assert gate_roc(result).equals(gate_roc(result))
    twice = pd.concat([result.frame, result.frame])  # twice the inputs, the same examples
    again = gate_roc(Result("gate", twice, {"seed": 3}))
    for name in ("auc", "auc_low", "auc_high", "true_open_low"):
        assert np.isclose(row(again)[name], row(gate_roc(result))[name])
    assert row(again)["n"] == 30
    more = gate_roc(Result("gate", apart(1.0).frame[lambda f: f.example < "e2"], {"seed": 3}))
    widths = [row(t)["auc_high"] - row(t)["auc_low"] for t in (more, again)]
    assert widths[0] > widths[1]


def test_inputs_without_a_similarity_are_ignored():
    def value(i, _layer, token, relation):
        none = token == "visual_mean" and relation == "text_locality"
        return np.nan if none or i == 0 else float(relation.endswith("generality"))

    table = gate_roc(study(value, tokens=("prompt_last", "visual_mean")))
    seen = table[table["token"] == "visual_mean"]
    assert list(seen["relation"]) == ["visual_locality", ANY] and (table["n"] == 29).all()


def test_a_side_without_inputs_has_no_auc():
    only = apart(1.0).frame[lambda f: f.relation.str.endswith("_locality")]
    table = gate_roc(Result("gate", only, {}))
    assert table[["auc", "auc_low", "true_open", "published_true_open"]].isna().all(axis=None)
    with pytest.raises(AttribError, match="no example has both"):
        best_layer(table, "prompt_last")


def test_one_example_has_no_interval_and_no_example_is_refused():
    one = apart(1.0).frame[lambda f: f.example == "e1"]
    told = row(gate_roc(Result("gate", one, {})))
    assert np.isfinite(told["auc"]) and np.isnan(told["auc_low"]) and told["n"] == 1
    with pytest.raises(AttribError, match="nothing to separate"):
        gate_roc(study(lambda *_: np.nan))


def test_the_best_layer_is_that_of_the_highest_auc_of_the_token():
    rng = np.random.default_rng(0)

    def value(_i, layer, token, relation):
        best = {"prompt_last": 2, "text_mean": 0}[token]
        return rng.normal() + (3 - abs(layer - best)) * relation.endswith("generality")

    table = gate_roc(study(value, layers=(0, 1, 2), tokens=("prompt_last", "text_mean")))
    assert (best_layer(table, "prompt_last"), best_layer(table, "text_mean")) == (2, 0)
    assert set(overall(table, "text_mean")["relation"]) == {ANY}
