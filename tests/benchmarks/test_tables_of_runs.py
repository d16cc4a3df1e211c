"""Tables that are made of kept runs: deletion areas, and open rates of learned gates."""

import argparse

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_vlm
from tiny_edits import samples

import attrib
from attrib.results import Result
from benchmarks import deletion, learned_gates

AREAS = {"heatmaps": (0.75, 0.25), "attention": (0.5, 0.25), "random": (0.5, 0.5)}


def planted(num=20):
    """Insertion and deletion areas around known means; what shifts both is not in their gap."""
    shift = np.random.default_rng(0).normal(0, 0.05, num)
    rows = [
        {"example": f"e{i}", "method": method, "statistic": name, "value": mean + shift[i]}
        for method, means in AREAS.items()
        for name, mean in zip(("insertion", "deletion"), means, strict=True)
        for i in range(num)
    ]
    return Result("deletion", pd.DataFrame(rows), {"seed": 0})


def test_rows_have_both_areas_and_paired_gaps():
    result = planted()
    rows = {row["method"]: row for row in deletion.rows_of("tiny", result)}
    assert list(rows) == list(AREAS)
    frame = result.frame
    for method, row in rows.items():
        for name in ("insertion", "deletion"):
            at = (frame["method"] == method) & (frame["statistic"] == name)
            mean, low, high = row[name]
            assert mean == pytest.approx(frame[at]["value"].mean(), abs=1e-4) and low < mean < high
        assert (row["model"], row["n"]) == ("tiny", 20)
    assert rows["heatmaps"]["gap over random"] == pytest.approx([0.5] * 3, abs=1e-4)
    assert rows["heatmaps"]["gap over attention"] == pytest.approx([0.25] * 3, abs=1e-4)
    assert rows["random"]["gap over random"] == [0, 0, 0]


def test_a_gate_has_its_own_rows_and_is_not_trained_again(monkeypatch, tmp_path):
    monkeypatch.setattr(attrib, "load", lambda *_args, **_options: tiny_vlm("llava"))
    loaded = lambda *_args, limit, **_options: samples(limit)  # noqa: E731
    monkeypatch.setattr(attrib.data, "load", loaded)
    options = argparse.Namespace(
        model="m", dtype="auto", data="d", gates="4:0:2,5:1:3", limit=3, seed=0, runs=tmp_path
    )
    table = learned_gates.measure(options)
    made = table.groupby("training_edits")[["layer", "steps"]].first()
    assert made.to_dict("index") == {4: {"layer": 0, "steps": 2}, 5: {"layer": 1, "steps": 3}}
    assert (
        set(table["relation"]) >= {"request", "hard_locality"} and table["open"].between(0, 1).all()
    )
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("gate.*")}
    assert {path.parent.name for path in kept} == {"4-0-2", "5-1-3"}
    pd.testing.assert_frame_equal(learned_gates.measure(options), table)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
