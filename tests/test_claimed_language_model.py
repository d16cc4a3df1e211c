"""What the pages say of smol-llava, and of FT-L behind DualEdit's gate, is in committed tables."""

import re

from claimed import LAYERS, RESULTS, equal, rows, shown


def test_the_regret_on_smol_llava_is_that_of_the_committed_grid():
    cells = {
        (float(row["text"]), float(row["visual"])): 100 * float(row["score"])
        for row in rows("grid-smol-llava/scores.csv")
        if row["text"] and row["visual"]
    }
    best = max(cells.values())
    _, part = LAYERS.split("## On a pretrained language model")
    listed = list(shown(part, "pick (text, visual)"))
    assert len(cells) == 14 and len(listed) == 7
    for place, _, average, regret in listed:
        text, visual = map(float, re.findall(r"\d+", place))
        assert equal(average, cells[text, visual]), place
        assert regret == "-" or equal(regret, best - cells[text, visual]), place
    picks = {r["pick"]: (r["text"], r["visual"]) for r in rows("grid-smol-llava/regret.csv")}
    assert picks["consensus"] == picks["patching"] == ("22", "22")
    assert picks["sensitivity"] == ("2", "13") and picks["onset"] == ("20", "20")
    assert "misses by 15 points" in RESULTS


def test_dualedit_and_ft_l_behind_one_gate():
    found = {}
    for row in rows("one-gate-tiny-llava/differences.csv"):
        pair = [(row["editor"], row["gate"]), (row["other"], row["other_gate"])]
        if pair == [("dualedit", "learned"), ("ft-l", "learned")] and row["metric"] == "avg":
            found[row["protocol"]] = [float(row[name]) for name in ("difference", "low", "high")]
    text = " ".join(RESULTS.split())
    ahead = re.search(r"DualEdit is ([\d.]+) points \(([\d.]+) to ([\d.]+)\) of the average", text)
    behind = re.search(r"teacher-forced and ([\d.]+) \(([\d.]+) to ([\d.]+)\) behind it", text)
    assert ahead is not None and behind is not None
    assert all(map(equal, ahead.groups(), found["paper"]))
    value, low, high = found["generate"]
    assert all(map(equal, behind.groups(), (-value, -high, -low)))
