"""What the page of layer selection says of evidence, seeds and missing cells on smol-llava."""

import re
from itertools import permutations

import numpy as np
from claimed import LAYERS, ROOT, cells, equal, rows

SECTION = " ".join(LAYERS.split("## On a pretrained language model")[1].split())


def test_the_evidence_that_predicts_best():
    known = {}
    for row in rows("grid-smol-llava-40/correlations.csv"):
        known.setdefault(row["modality"], {})[row["evidence"]] = float(row["correlation"])
        assert row["layers"] == "8"
    told = re.search(
        r"`reach` on text tokens \((\S+); the consensus (\S+), sensitivity (\S+), patching (\S+)\) "
        r"and the attention to the image on visual tokens \((\S+); the consensus (\S+)\)\.",
        SECTION,
    )
    assert told is not None
    names = [("text", name) for name in ("reach", "consensus", "sensitivity", "patching")]
    names += [("visual", "attention"), ("visual", "consensus")]
    for number, (modality, name) in zip(told.groups(), names, strict=True):
        assert equal(number.replace("-", "", 1), abs(known[modality][name]))
        assert number.startswith("-") == (known[modality][name] < 0)
    assert max(known["text"], key=known["text"].__getitem__) == "reach"
    assert max(known["visual"], key=known["visual"].__getitem__) == "attention"
    assert min(known["visual"], key=known["visual"].__getitem__) == "consensus"


def test_what_chance_reaches_with_eight_layers():
    told = re.search(r"chance alone reaches (\S+), up or down, in (\d) % of all orders", SECTION)
    assert told is not None
    ranks = np.arange(8) - 3.5
    orders = np.array(list(permutations(ranks)))
    rho = orders @ ranks / (ranks @ ranks)
    least = min(value for value in abs(rho) if equal(told[1], value))
    assert equal(told[2], 100 * (abs(rho) > least - 1e-9).mean())


def test_which_picks_have_one_seed_and_which_none():
    seeds = cells("grid-smol-llava/scores.csv")
    told = re.search(
        r"The picks (.*?) were trained with one seed only\. No single layer is", SECTION
    )
    assert told is not None
    single = {(int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", told[1])}
    assert single == {place for place, known in seeds.items() if set(known) == {"0"}}
    assert {len(known) for known in seeds.values()} == {1, 3}
    counts = len(seeds), len(seeds) - len(single)
    assert f"{counts[0]} pairs with seed 0, {counts[1]} of them with seeds 1 and 2" in SECTION
    assert all(r["text"] and r["visual"] for r in rows("grid-smol-llava/scores.csv"))
    picks = {r["pick"]: (int(r["text"] or -1), int(r["visual"] or -1))
             for r in rows("grid-smol-llava/regret.csv")}  # fmt: skip
    assert {picks[rule] for rule in ("onset", "sensitivity", "patching")} < single
    assert picks["layer 1"] in set(seeds) - single


def test_ranges_over_seeds_are_not_called_intervals():
    log = (ROOT / "LOG.md").read_text(encoding="utf-8")
    (row,) = (r for r in rows("grid-smol-llava/regret.csv") if r["pick"] == "consensus")
    assert (
        f"{100 * float(row['regret']):.2f} points,\nnot within 1" in log
        and "Within 1 point" not in log
    )
    assert "the smallest and the largest regret of the three seeds, which is no conf" in " ".join(
        LAYERS.split()
    )
    scored = {
        place: [float(r["score"]) for r in rows("grid-smol-llava/scores.csv")
                if (r["text"], r["visual"]) == place]
        for place in ((row["text"], row["visual"]), (row["best_text"], row["best_visual"]))
    }  # fmt: skip
    own, best = scored.values()
    ahead = [b - a for a, b in zip(own, best, strict=True)]
    assert np.allclose([float(row["low"]), float(row["high"])], [min(ahead), max(ahead)], atol=1e-4)
