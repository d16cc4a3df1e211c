"""Thresholds reach the rates they state, and tables show what they do."""

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_vlm
from test_gates import learned
from tiny_edits import samples

from attrib.errors import AttribError
from attrib.stats import roc
from editors.gating.calibration import calibrate
from editors.gating.classifier import NEVER
from editors.gating.features import COVERED, REQUEST, related_inputs
from editors.gating.gates import CosineGate
from editors.gating.threshold import (
    calibrate_scores,
    gate_scores,
    gate_table,
    open_rates,
)
from editors.gating.training import fit_cosine_gate

POSITIVE = COVERED[1:]


def scores(seed=0):
    random = np.random.default_rng(seed)
    covered = {"a": random.normal(1, 1, 80).round(1), "b": random.normal(2, 1, 40).round(1)}
    return covered, {"c": random.normal(-1, 1, 60).round(1), "d": random.normal(0, 1, 90).round(1)}


def opened(some, threshold):
    return np.mean([(values >= threshold).mean() for values in some.values()])


@pytest.mark.parametrize("seed", range(4))
def test_a_threshold_reaches_the_stated_rate_and_no_better_one_does(seed):
    covered, others = scores(seed)
    every = np.unique(np.concatenate([*covered.values(), *others.values()]))
    found = calibrate(covered, others, false_open=0.05)
    assert found.false_open == pytest.approx(opened(others, found.threshold))
    assert found.kept == pytest.approx(opened(covered, found.threshold))
    most = [
        max((values >= cut).mean() for values in others.values())
        for cut in (found.threshold, every[every < found.threshold].max())
    ]
    assert most[0] <= 0.05 < most[1]  # of the kind that opens most
    found = calibrate(covered, others, keep=0.9)
    assert found.kept >= 0.9 > opened(covered, every[every > found.threshold][1])
    found = calibrate(covered, others)
    best = max(opened(covered, t) - opened(others, t) for t in every)
    assert found.kept - found.false_open == pytest.approx(best)


def test_rates_of_each_relation_are_kept():
    covered, others = scores()
    found = calibrate(covered, others, keep=0.95)
    for name, values in {**covered, **others}.items():
        assert found.open_rates[name] == pytest.approx((values >= found.threshold).mean())
    assert found.record()["rule"] == "at least 0.95 of covered inputs open"


def test_false_openings_are_limited_in_each_group_of_kinds():
    """Kinds about one picture are averaged; an easy kind does not pay for another group's."""
    random = np.random.default_rng(0)
    hard, easy = random.normal(0, 1, 400), random.normal(-9, 1, 400)
    covered = {"text_generality": random.normal(4, 1, 400)}
    names = ["same_image_same_kind", "same_image_other_kind", "mined_nearest_image"]
    together = calibrate(
        covered, dict(zip(names, [hard, easy, easy], strict=True)), false_open=0.03
    )
    apart = calibrate(covered, {names[0]: hard, names[2]: easy}, false_open=0.03)
    assert 0.05 < (hard >= together.threshold).mean() <= 0.06  # half of it, with the other kind
    assert 0.02 < (hard >= apart.threshold).mean() <= 0.03


def test_the_ends_of_the_rates():
    covered, others = scores()
    assert calibrate(covered, others, false_open=0.0).false_open == 0
    assert calibrate(covered, others, keep=1.0).kept == 1
    assert calibrate(covered, others, keep=0.0).kept == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"false_open": 0.1, "keep": 0.9}, "not both"),
        ({"keep": 1.5}, "a rate of 1.5"),
    ],
)
def test_rules_that_make_no_sense_are_refused(given, message):
    with pytest.raises(AttribError, match=message):
        calibrate(*scores(), **given)


def test_a_threshold_needs_both_sides_and_finite_scores():
    covered, others = scores()
    with pytest.raises(AttribError, match="inputs that an edit covers"):
        calibrate(covered, {})
    others["c"][0] = np.nan
    with pytest.raises(AttribError, match="not finite"):
        calibrate(covered, others)


def test_hard_inputs_decide_where_there_are_some():
    frame = pd.DataFrame(
        [("request", 9.0), ("text_generality", 2.0), ("visual_locality", 3.0), ("hard", 1.0)],
        columns=["relation", "value"],
    )
    assert calibrate_scores(frame).threshold == 1.5
    for request in (9.0, 0.5):  # it is compared with itself, and counts on neither side
        easy = frame[frame["relation"] != "hard"].assign(value=[request, 2.0, 1.0])
        found = calibrate_scores(easy)
        assert (found.threshold, found.kept, found.false_open) == (1.5, 1, 0)


def test_a_cosine_gate_has_the_threshold_of_its_training_edits():
    vlm, edits = tiny_vlm("llava"), samples(5)
    gate = fit_cosine_gate(vlm, edits, 1, keep=0.9)
    found = gate_scores(vlm, edits, gate)
    kept = [
        (found["value"][found["relation"] == name] >= gate.threshold).mean() for name in POSITIVE
    ]
    assert np.mean(kept) >= 0.9
    assert gate.record["calibration"]["kept"] == pytest.approx(np.mean(kept))


def test_the_table_has_the_rates_and_the_auc_of_every_gate():
    vlm, edits = tiny_vlm("llava"), samples(5)
    gates = {
        "cosine": CosineGate(1, 0.99),
        "leaking": CosineGate(1, 0.99, "sequence_last"),
        "learned": learned(vlm),
    }
    table = gate_table(vlm, edits, gates, forced=True, resamples=20)
    assert set(table["gate"]) == set(gates)
    assert set(table["relation"]) == {one.relation for one in related_inputs(edits)}
    for name, gate in gates.items():
        found = gate_scores(vlm, edits, gate)
        mine = table[table["gate"] == name].set_index("relation")
        share = (found["value"] >= gate.threshold).groupby(found["relation"]).mean()
        assert mine["open"].to_dict() == pytest.approx(share.to_dict())
        covered = found["relation"].isin(POSITIVE)
        other = found["relation"] == "visual_locality"
        some = found[covered | other]
        auc = roc(some["value"].round(6).to_numpy(), covered[some.index].to_numpy()).auc[0]
        assert mine["auc"]["visual_locality"] == pytest.approx(auc, abs=1e-6)
        assert mine["auc"][[*COVERED]].isna().all()
    prompts = gate_table(vlm, edits, gates, resamples=20).set_index(["gate", "relation"])["open"]
    forced = table.set_index(["gate", "relation"])["open"]
    assert (prompts["cosine"] == forced["cosine"]).all()
    assert prompts["leaking"][REQUEST] < forced["leaking"][REQUEST] == 1


def test_intervals_hold_the_rate_and_repeat():
    vlm, edits = tiny_vlm("llava"), samples(6)
    found = gate_scores(vlm, edits, CosineGate(1, 0.0))
    middle = float(found["value"].median())
    one, other = (open_rates(found, middle, resamples=50) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    assert ((one["open_low"] <= one["open"]) & (one["open"] <= one["open_high"])).all()
    told = one.dropna()
    assert ((told["auc_low"] <= told["auc"]) & (told["auc"] <= told["auc_high"])).all()


def test_inputs_that_the_text_rule_shuts_out_do_not_loosen_the_threshold_for_images():
    """E-VQA has no near neighbours: with T-Loc in the mean, 6 % of M-Loc would open."""
    random = np.random.default_rng(0)
    values = {
        "text_generality": random.normal(2, 1, 500),
        "visual_locality": random.normal(-2, 2, 1000),
        "text_locality": np.full(1000, NEVER),
    }
    frame = pd.concat([pd.DataFrame({"relation": r, "value": v}) for r, v in values.items()])
    found = calibrate_scores(frame, false_open=0.03)
    assert 0.02 < (values["visual_locality"] >= found.threshold).mean() <= 0.03
    alone = frame[frame["relation"] != "visual_locality"]
    assert calibrate_scores(alone, false_open=0.03).false_open == 0  # nothing else to go by
