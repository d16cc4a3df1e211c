"""What the pages say of layer selection on models that the rules had not seen, and on all four."""

import re
from statistics import mean

from claimed import LAYERS, RESULTS, ROOT, cells, equal, rows, shown

MODELS = ("tiny-llava", "tiny-blip2", "tiny-minigpt4", "smol-llava")
BLIND = MODELS[1:3]
NAMES = {"the first layer": "first layer", "the middle": "middle layer",
         "a random pair": "random cell"}  # fmt: skip
REGRET = {m: {r["pick"]: r for r in rows(f"grid-{m}/regret.csv")} for m in MODELS}
FOUR = " ".join(LAYERS.split("## Four models, one rule")[1].split())


def test_the_blind_grids():
    picks = {"(1, 1)": "consensus", "(0, 0)": "first layer", "(5, 5)": "middle layer",
             "(5, 6)": "depths 16/32 and 19/32", "": "random cell"}  # fmt: skip
    listed = list(shown(LAYERS, "adapters at | by | `tiny-blip2`, average"))
    assert [place for place, *_ in listed] == list(picks)
    for place, _, *numbers in listed:
        for model, average, regret in zip(BLIND, numbers[::2], numbers[1::2], strict=True):
            row = REGRET[model][picks[place]]
            assert equal(average, 100 * float(row["score"])) and row["seeds"] == "3"
            for end, column in zip(
                re.findall(r"-?[\d.]+", regret), ("regret", "low", "high"), strict=True
            ):
                assert equal(end, 100 * float(row[column])), (model, place)
            if place:
                assert f"({row['text']}, {row['visual']})" == place
            assert {REGRET[model][rule]["text"] for rule in ("sensitivity", "reach")} == {"0"}
            assert (REGRET[model]["layer 1"]["text"], REGRET[model]["layer 1"]["visual"]) == (
                "1", "1")  # fmt: skip


def test_what_is_said_of_the_blind_grids():
    section = " ".join(LAYERS.split("## Two models that")[1].split("## On a")[0].split())
    pairs = {model: cells(f"grid-{model}/scores.csv") for model in BLIND}
    with_seeds = {m: {p: v for p, v in some.items() if len(v) == 3} for m, some in pairs.items()}
    (number,) = {len(some) for some in with_seeds.values()}
    assert f"Of {number} pairs with three seeds" in section
    best = [max(some, key=lambda p, s=some: mean(s[p].values())) for some in with_seeds.values()]
    assert best == [(1, 1), (0, 2)] and "`tiny-minigpt4` the best is (0, 2)" in section
    onset = re.search(r"(\S+) points behind, and \(8, 8\) on `tiny-minigpt4`, (\d+) p", section)
    assert onset is not None
    assert equal(onset[1], 100 * float(REGRET["tiny-blip2"]["onset"]["regret"]))
    last = pairs["tiny-minigpt4"]
    assert equal(onset[2], max(v["0"] for v in last.values()) - last[8, 8]["0"])
    places = [(REGRET[m]["patching"]["text"], REGRET[m]["patching"]["visual"]) for m in BLIND]
    assert places == [("3", "1"), ("5", "1")]
    assert all(tuple(map(int, p)) not in pairs[m] for m, p in zip(BLIND, places, strict=True))


def test_rank_correlations_of_the_blind_grids():
    known = [{(r["modality"], r["evidence"]): r for r in rows(f"grid-{m}/correlations.csv")}
             for m in BLIND]  # fmt: skip
    told = re.search(
        r"text (\S+) and (\S+), visual (\S+) and (\S+); of sensitivity text (\S+) and (\S+), "
        r"visual (\S+) and (\S+)\. ", " ".join(LAYERS.split())
    )  # fmt: skip
    assert told is not None
    wanted = [(modality, rule) for rule in ("consensus", "sensitivity")
              for modality in ("text", "visual")]  # fmt: skip
    numbers = [row[key] for key in wanted for row in known]
    assert all(row["layers"] == "5" for row in numbers)
    for number, row in zip(told.groups(), numbers, strict=True):
        assert equal(number, float(row["correlation"]))


def test_the_regret_on_all_four_models():
    means = {}
    for label, *numbers in shown(LAYERS, "regret of | `tiny-llava`"):
        name = NAMES.get(label, label)
        values = [100 * float(REGRET[model][name]["regret"]) for model in MODELS]
        assert all(map(equal, numbers, [*values, mean(values)])), label
        means[name] = mean(values)
    assert min(means, key=means.__getitem__) == "consensus"
    fixed = {name: value for name, value in means.items() if name != "consensus"}
    assert min(fixed, key=fixed.__getitem__) == "first layer"
    worst = max(float(REGRET[model]["consensus"]["regret"]) for model in MODELS)
    assert f"at most {100 * worst:.2f} points on any of the four" in FOUR
    assert all(
        max(float(REGRET[model][name]["regret"]) for model in MODELS) > worst for name in fixed
    )
    middle = float(REGRET["smol-llava"]["middle layer"]["regret"])
    assert f"within {100 * middle:.1f} points of the best place there" in FOUR
    told = re.search(r"the consensus loses (\S+) points, the first layer (\S+);", RESULTS)
    assert told is not None
    assert all(map(equal, told.groups(), (means["consensus"], means["first layer"])))


def test_the_short_forms_on_other_pages():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    own = [100 * float(REGRET[model]["consensus"]["regret"]) for model in BLIND]
    told = re.search(r"one seed\), (\S+) and (\S+) on two models the rules had not seen", readme)
    assert told is not None and all(map(equal, told.groups(), own))
    told = re.search(r"lose (\S+) points against the best pair .*?, (\S+) and (\S+) on", RESULTS)
    first = 100 * float(REGRET["tiny-llava"]["consensus"]["regret"])
    assert told is not None and all(map(equal, told.groups(), [first, *own]))
