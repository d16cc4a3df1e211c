"""Sentences with numbers on the pages of editors, layers and results: each is a committed one."""

import csv
import re
from statistics import mean

from claimed import BENCHMARKS, EDITORS, LAYERS, RESULTS, ROOT, cells, equal, rows, scores

from attrib.stats import wilson

PAGES = {"editors": EDITORS, "layers": LAYERS, "results": RESULTS,
         "readme": (ROOT / "README.md").read_text(encoding="utf-8"),
         "precision": (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")}  # fmt: skip
TEXT = {name: " ".join(page.split()) for name, page in PAGES.items()}
LOG = " ".join((ROOT / "LOG.md").read_text(encoding="utf-8").split())
LLAVA = "ten-editors/tiny-llava-scenes-vqa"


def told(page, pattern):
    """The numbers of the first sentence of a page that has this form."""
    found = re.search(pattern, TEXT[page])
    assert found, (page, pattern)
    return [number.replace(",", "") for number in found.groups()]


def test_regret_of_the_other_picks_on_tiny_llava():
    known = {r["pick"]: r["regret"] and 100 * float(r["regret"])
             for r in rows("grid-tiny-llava/regret.csv")}  # fmt: skip
    low, high = told("layers", r"Regret of each rule alone: ([\d.]+) to ([\d.]+)\.")
    alone = [known[name] for name in ("onset", "sensitivity", "patching", "reach")]
    assert equal(low, min(alone)) and equal(high, max(alone))
    picks = ("depths 16/32 and 19/32", "first layer", "layer 1", "random cell")
    for number, pick in zip(
        told("layers", r"relative depths: ([\d.]+)\..*?Of the first layer: ([\d.]+); of layer 1, "
                       r"which is the pick: ([\d.]+)\. Of a random one of the ten pairs: (\d\.\d)"),
        picks, strict=True,
    ):  # fmt: skip
        assert equal(number, known[pick]), pick
    assert len(cells("grid-tiny-llava/grid.csv")) == 10


def test_the_best_cell_is_the_luckiest():
    """Each two of three seeds pick a cell; the third scores it."""
    grid = cells("grid-tiny-llava/grid.csv", gate="learned", metric="avg")
    ahead = []
    for seed in ("0", "1", "2"):
        rest = {p: mean(v for s, v in by.items() if s != seed) for p, by in grid.items()}
        ahead.append(grid[max(rest, key=rest.__getitem__)][seed] - grid[1, 1][seed])
    (number,) = told("layers", r"scored on the third, it is ([\d.]+) worse than the consensus")
    (known,) = (float(r["held_out"]) for r in rows("grid-tiny-llava/regret.csv")
                if r["pick"] == "consensus")  # fmt: skip
    assert equal(number, -100 * known) and equal(number, -mean(ahead))


def test_rank_correlations():
    known = {(r["modality"], r["evidence"]): float(r["correlation"])
             for r in rows("grid-tiny-llava/correlations.csv")}  # fmt: skip
    numbers = told("layers", r"visual ([\d.]+) for the consensus and the onset of attention, "
                             r"([\d.]+) for onset, sensitivity and patching; text ([\d.]+) for the "
                             r"consensus \(single .*?\), ([\d.]+) for sens")  # fmt: skip
    names = ([("visual", "consensus"), ("visual", "onset-attn")],
             [("visual", name) for name in ("onset", "sensitivity", "patching")],
             [("text", "consensus")], [("text", "sensitivity")])  # fmt: skip
    for number, group in zip(numbers, names, strict=True):
        assert all(equal(number, known[name]) for name in group), group


def test_two_equal_maxima_on_smol_llava():
    known = {int(r["layer"]): float(r["value"])
             for r in rows("selection-smol-llava/scores.csv")
             if (r["modality"], r["evidence"]) == ("text", "consensus")}  # fmt: skip
    first, last = told("layers", r"layers 6 and 16 score alike \((0\.\d+) and (0\.\d+)\)")
    assert equal(first, known[6]) and equal(last, known[16])
    assert max(known, key=known.__getitem__) == 6


def test_what_the_grid_on_smol_llava_tells_apart():
    seeds = cells("grid-smol-llava/scores.csv")
    (spread,) = told("layers", r"One seed moves a cell by up to ([\d.]+) points")
    assert equal(spread, max(max(v.values()) - min(v.values()) for v in seeds.values()))
    lost = {
        r["pick"]: 100 * float(r["regret"])
        for r in rows("grid-smol-llava/regret-seed-0.csv")
        if r["regret"]
    }
    first, last, six, least, most, low, high = told(
        "layers",
        r"Layer 1, the pick on the three models trained from scratch, lost ([\d.]+) to ([\d.]+) "
        r"points in each of three seeds, the pick at 6 of two equal maxima ([\d.]+) \(([\d.]+) to "
        r"([\d.]+)\); sensitivity, onset and patching alone lost ([\d.]+) to ([\d.]+) in",
    )
    (row,) = (r for r in rows("grid-smol-llava/regret.csv") if r["pick"] == "layer 1")
    assert equal(first, 100 * float(row["low"])) and equal(last, 100 * float(row["high"]))
    assert equal(low, lost["sensitivity"]) and equal(high, lost["patching"])
    assert lost["sensitivity"] <= lost["onset"] <= lost["patching"]
    best = max((v for v in seeds.values() if len(v) == 3), key=lambda v: sum(v.values()))
    apart = [best[seed] - seeds[6, 13][seed] for seed in "012"]
    assert equal(six, sum(apart) / 3) and equal(least, min(apart)) and equal(most, max(apart))
    between = {pair for pair in seeds if all(13 <= layer <= 18 for layer in pair)}
    assert between == {(15, 15), (16, 16), (16, 13), (15, 18)}
    one, other = told("layers", r"second grid had shown ([\d.]+) at \(6, 13\) and ([\d.]+) at")
    assert equal(one, seeds[6, 13]["0"]) and equal(other, seeds[15, 15]["0"])
    (cap,) = told("layers", r"caps T-Gen for all, at (\d+) %")
    gated = cells("grid-smol-llava/grid.csv", gate="learned", metric="t_gen")
    assert equal(cap, max(one for v in gated.values() for one in v.values()))


def test_what_the_log_alone_records_names_it_and_is_there():
    """One trial each: no table was kept of them."""
    shares = re.search(r"captions: \(1, 1\) .*?in (\d+ to \d+ %) of resamples", LOG)
    assert shares is not None
    assert f"{shares[1]} of the resamples (`LOG.md`)" in TEXT["layers"]
    assert "Muon needs a quarter of the steps (`LOG.md`)" in TEXT["editors"]
    assert "Muon needs a quarter of the steps or less" in LOG
    assert "plain pass 32 and 63 ms" in LOG
    assert "took 32 and 63 ms on two such machines (`LOG.md`)" in " ".join(BENCHMARKS.split())
    assert "65 % whole captions on 40 validation edits after 400 steps" in TEXT["results"]
    assert "| 1, 1 | 8 | 0.1 | .956 .961 .978 | 98.4, 65.0 |" in LOG
    now, before = told("results", r"with (\d+) % of the attention of one head on the right place "
                                  r"\((\d+) % before\)")  # fmt: skip
    kept = re.search(r"now gives (\d+) % of its attention to the place .*?\(before (\d+) and", LOG)
    assert kept is not None and kept.groups() == (now, before)


def test_no_numbers_of_rules_that_were_given_up():
    """Of the two earlier rules of the gate's threshold no table was kept."""
    (sentence,) = re.findall(
        r"The rule of the threshold was chosen.*?training edits\.", EDITORS, re.S
    )
    assert not re.search(r"\d", sentence)


def test_the_shallow_gate_on_the_page_of_editors():
    (kept,) = told("editors", r"keeps (\d+) % of rephrases at layer 1 of 10")
    found = scores("gates/summary.csv", "generate-prefix")
    assert equal(kept, found["dualedit", "prompt_last", "t_gen"][0])


def test_reliability_behind_a_learned_gate():
    names = ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
    every = [scores(f"{name}-scenes-vqa/scores.csv", "generate-prefix") for name in names]
    shares = [found[e, "learned", "rel"][0] for found in every for e in ("visedit", "dualedit")]
    ends = told("results", r"DualEdit and VisEdit get (\d+) to (\d+) % of requests right")
    assert all(map(equal, ends, (min(shares), max(shares))))
    bundled = scores("bundled-tiny-llava/summary.csv", "generate")
    (share,) = told("readme", r"`tiny-llava` gets ([\d.]+) % of requests right, as whole gen")
    assert equal(share, bundled["dualedit", "learned", "rel"][0])


def test_the_bundled_editors():
    (part,) = told(
        "results", r"Of whole generated answers \(Rel / T-Gen / V-Gen\) (DualEdit .*?bundled-)"
    )
    cells = re.findall(r"([\d.]+) / ([\d.]+) / ([\d.]+)", part)
    wanted = [("tiny-llava", "dualedit"), ("tiny-blip2", "dualedit"), ("tiny-minigpt4", "dualedit"),
              ("tiny-llava", "visedit")]  # fmt: skip
    for triple, (model, editor) in zip(cells, wanted, strict=True):
        known = scores(f"bundled-{model}/summary.csv", "generate")
        metrics = ("rel", "t_gen", "v_gen")
        told_and_known = zip(triple, metrics, strict=True)
        assert all(equal(a, known[editor, "learned", m][0]) for a, m in told_and_known)


def test_minutes_of_training():
    seconds = [
        float(r["training, s"])
        for model in ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
        for r in rows(f"ten-editors/{model}-scenes-vqa/costs.csv")
        if r["editor"] in ("dualedit", "visedit")
    ]
    low, high = told("results", r"400 steps, (\d+) to (\d+) minutes")
    assert equal(low, min(seconds) / 60) and equal(high, max(seconds) / 60)


def test_the_gate_of_the_published_program_opened_once():
    right, of, low, high = told("results", r"opened for (\d+) of (\d+) of its own requests \(95 % "
                                           r"interval ([\d.]+) to ([\d.]+) %\)")  # fmt: skip
    ends = wilson(int(right), int(of))
    assert equal(low, 100 * ends[0]) and equal(high, 100 * ends[1])


def test_baselines_on_the_three_models():
    by = {name: scores(f"ten-editors/{name}-scenes-vqa/scores.csv", "paper")
          for name in ("tiny-llava", "tiny-blip2", "tiny-minigpt4")}  # fmt: skip

    def values(editor, metric, names=tuple(by)):
        return [v[0] for name in names for key, v in by[name].items()
                if (key[0], key[2]) == (editor, metric)]  # fmt: skip

    low, high = told("results", r"MEND's T-Loc \(([\d.]+) to ([\d.]+)\)")
    assert equal(low, min(values("mend", "t_loc"))) and equal(high, max(values("mend", "t_loc")))
    others = values("ike", "rel", ("tiny-blip2", "tiny-minigpt4"))
    assert "IKE stays below 10 on both" in TEXT["results"] and max(others) < 10
    least, most, blip, *rest = told(
        "results", r"M-Loc is (\d+) to (\d+) here, and T-Loc (\d+) on tiny-blip2 \((\d+) and (\d+)"
    )
    assert equal(least, min(values("lte", "m_loc"))) and equal(most, max(values("lte", "m_loc")))
    known = [values("lte", "t_loc", (name,))[0] for name in by]
    assert all(map(equal, (rest[0], blip, rest[1]), known))
    retrieval = scores("one-gate-tiny-llava/scores.csv", "paper")
    numbers = told("results", r"reaches T-Loc ([\d.]+) and M-Loc ([\d.]+), but ([\d.]+) % of rep")
    metrics = ("t_loc", "m_loc", "t_gen")
    assert all(
        equal(n, retrieval["lte", "retrieval", m][0]) for n, m in zip(numbers, metrics, strict=True)
    )
    ends = told(
        "results",
        r"FT-V's M-Loc \(([\d.]+) to ([\d.]+)\), and LTE's T-Loc \(([\d.]+) to ([\d.]+)\) and "
        r"M-Loc \(([\d.]+) to ([\d.]+)\)",
    )
    wanted = [values(*one) for one in (("ft-v", "m_loc"), ("lte", "t_loc"), ("lte", "m_loc"))]
    assert all(map(equal, ends, [end for some in wanted for end in (min(some), max(some))]))
    (share,) = told("results", r"do not learn from demonstrations \((\d+) % of 500 edits")
    assert equal(share, values("ike", "rel", ("tiny-llava",))[0])


def test_published_ranges():
    with (ROOT / "editors" / "evaluation" / "published.csv").open(newline="") as file:
        every = list(csv.DictReader(file))

    def ends(editor, metric, data):
        found = [float(r[metric]) for r in every if (r["editor"], r["data"]) == (editor, data)]
        return min(found), max(found)

    numbers = told("results", r"\*\*IKE\.\*\* (\d+) to (\d+) % on E-VQA there")
    assert all(map(equal, numbers, ends("ike", "rel", "E-VQA")))
    m_low, m_high, t_low, t_high = told("results", r"M-Loc (\d+) to (\d+) and T-Loc (\d+) to (\d+) "
                                                   r"there\. Without")  # fmt: skip
    known = ends("lte", "m_loc", "E-VQA"), ends("lte", "t_loc", "E-VQA")
    assert all(map(equal, (m_low, m_high, t_low, t_high), (*known[0], *known[1])))
    there, here = told("results", r"captions\.\*\* (\d+) % of tokens on E-IC there; here ([\d.]+)")
    low, high = ends("serac", "rel", "E-IC")
    assert low <= float(there) + 0.5 and float(there) - 0.5 <= high
    found = scores("ten-editors/tiny-llava-scenes-captions/scores.csv", "paper")
    assert equal(here, next(v[0] for k, v in found.items() if (k[0], k[2]) == ("serac", "rel")))


def test_captions_of_the_unedited_model():
    found = scores("ten-editors/tiny-llava-scenes-captions/scores.csv", "paper")
    (share,) = told("results", r"unedited model already gets (\d+) % of the tokens")
    assert equal(share, next(v[0] for k, v in found.items() if (k[0], k[2]) == ("unedited", "rel")))


def test_precision_of_float16_beside_bfloat16():
    with (ROOT / "benchmarks" / "results" / "precision.csv").open(newline="") as file:
        every = list(csv.DictReader(file))
    worst = {}
    for row in every:
        key = row["analysis"], row["dtype"]
        worst[key] = max(worst.get(key, 0), float(row["relative_deviation_median"]))
    ratios = [worst[name, "bfloat16"] / worst[name, "float16"] for name, _ in worst]
    words = dict(zip(("five", "six", "nine", "twelve"), (5, 6, 9, 12), strict=True))
    low, high = told("precision", r"float16 is (\w+) to (\w+) times closer")
    assert (words[low], words[high]) == (round(min(ratios)), round(max(ratios)))
    (least,) = told("precision", r"median rank correlation is at least (\.\d+)")
    assert equal(least, min(float(r["rank_correlation_median"]) for r in every))
    other = [r for r in every if (r["analysis"], r["dtype"][:8]) != ("patching", "bfloat16")]
    assert min(float(r["rank_correlation_mean"]) for r in other) > 0.99
    (top,) = told("precision", r"same top layer in at least (\d+) % of samples everywhere")
    halves = [float(r["same_top_layer"]) for r in every if r["dtype"] == "float16"]
    assert equal(top, 100 * min(halves))
    listed = re.findall(r"  \| ([a-z].*?) \| (tiny-\w+) \| (\d+) % \| (\d+) % \| ([\d.]+) %",
                        PAGES["precision"])  # fmt: skip
    low_ones = {(r["analysis"], r["model"]): r for r in every
                if r["dtype"] == "bfloat16" and float(r["same_top_layer"]) < 0.95}  # fmt: skip
    assert {(name, model) for name, model, *_ in listed} == set(low_ones)
    for name, model, same, clear, regret in listed:
        row = low_ones[name, model]
        assert equal(same, 100 * float(row["same_top_layer"]))
        assert equal(clear, 100 * float(row["clear_margin"]))
        if "one sample of 28 %" not in PAGES["precision"] or (name, model) != (
            "patching",
            "tiny-llava",
        ):
            assert equal(regret, 100 * float(row["regret_max"])), (name, model)
        else:
            assert equal("28", 100 * float(row["regret_max"]))
