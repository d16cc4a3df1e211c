"""What the pages say of smol-llava, and of FT-L behind DualEdit's gate, is in committed tables."""

import json
import re

from claimed import EDITORS, LAYERS, RESULTS, ROOT, equal, rows, shown

ENDS = ("difference", "low", "high")


def test_the_regret_on_smol_llava_is_that_of_the_committed_grid():
    grid = {
        (row["text"], row["visual"], row["seed"], row["gate"], row["metric"]): 100
        * float(row["value"])
        for row in rows("grid-smol-llava/grid.csv")
    }
    _, part = LAYERS.split("## On a pretrained language model")
    listed = list(shown(part, "pick (text, visual) | by | average | regret"))
    first = {key[:2]: value for key, value in grid.items() if key[2:] == ("0", "learned", "avg")}
    assert len(listed) == len(first) >= 9
    for place, _, average, regret, *ungated in listed:
        cell = tuple(re.findall(r"\d+", place))
        assert equal(average, first[cell]) and equal(regret, max(first.values()) - first[cell])
        found = [grid[(*cell, "0", "none", metric)] for metric in ("avg", "rel", "t_gen")]
        assert all(map(equal, ungated, found)), place
    known = {row["pick"]: row for row in rows("grid-smol-llava/regret.csv")}
    names = {"the middle": "middle layer", "the first layer": "first layer",
             "a random one of these pairs": "random cell"}  # fmt: skip
    for label, average, regret in shown(part, "pick by | average | regret"):
        row = known[names.get(label, label)]
        ends = re.findall(r"-?[\d.]+", regret)
        assert equal(average, 100 * float(row["score"])) and row["seeds"] == "3"
        assert all(
            equal(end, 100 * float(row[c]))
            for end, c in zip(ends, ("regret", "low", "high"), strict=True)
        )
        assert label not in ("consensus", "the middle") or regret in RESULTS
    picks = {name: (row["text"], row["visual"]) for name, row in known.items()}
    assert picks["consensus"] == ("16", "16") and picks["patching"] == ("22", "22")


def test_the_first_grid_on_smol_llava():
    known = {row["pick"]: row for row in rows("grid-smol-llava-40/regret.csv")}
    _, part = LAYERS.split("## On a pretrained language model")
    assert equal("15", 100 * float(known["patching"]["regret"])) and "lost 15 points" in part
    assert equal("12", 100 * float(known["middle layer"]["regret"])) and "12 points behind" in part


def dualedit_scores(folder):
    """Rows of DualEdit in a table, by protocol and metric."""
    return {
        (row["protocol"], row["metric"]): row
        for row in rows(f"{folder}/summary.csv")
        if (row["editor"], row["gate"]) == ("dualedit", "learned")
    }  # fmt: skip


def test_dualedit_on_smol_llava():
    known = dualedit_scores("dualedit-end-smol-llava")
    part = RESULTS.split("## On a pretrained language model")[1].split("## Captions")[0]
    listed = list(shown(part, "protocol | Rel"))
    assert [protocol.strip("`") for protocol, *_ in listed] == ["paper", "exact", "generate"]
    for protocol, *cells in listed:
        metrics = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
        for metric, cell in zip(metrics, cells, strict=True):
            row = known[protocol.strip("`"), metric]
            told = re.findall(r"[\d.]+", cell)
            assert all(map(equal, told, (float(row[c]) for c in ("mean", "low", "high")))), cell
    (kept,) = re.findall(r"in ([\d.]+) % of the edits", part)
    assert equal(kept, float(known["generate", "same_image"]["mean"]))


def test_dualedit_without_the_end_token_on_smol_llava():
    known = dualedit_scores("dualedit-smol-llava")
    part = " ".join(RESULTS.split("**The end token decides")[1].split())
    for protocol, told in zip(
        ("paper", "generate"), re.findall(r"([\d. /]+) %", part)[:2], strict=True
    ):
        wanted = [float(known[protocol, metric]["mean"]) for metric in ("rel", "t_gen", "v_gen")]
        assert all(map(equal, told.strip().split(" / "), wanted))


def test_costs_of_analyses_on_smol_llava():
    record = json.loads(
        (ROOT / "benchmarks" / "results" / "analysis-costs-smol-llava.json").read_text()
    )
    known = {row["step"]: row for row in record["rows"]}
    page = (ROOT / "docs" / "models.md").read_text()
    listed = {name.split(",")[0]: cells for name, *cells in shown(page, "step | seconds | MiB")}
    assert set(listed) == set(known)
    for name, (seconds, peak) in listed.items():
        row = known[name]
        assert equal(seconds, row["seconds a sample"])
        assert equal(peak.replace(",", ""), row["peak MiB"])
        assert (row["samples"], row["threads"], row["dtype"]) == (8, 1, "bfloat16")


def test_gates_on_smol_llava():
    found = {
        (row["training_edits"], row["layer"], row["steps"], row["relation"]): [
            100 * float(row[name]) for name in ("open", "open_low", "open_high")
        ]
        for row in rows("gates-smol-llava/open.csv")
    }
    listed = shown(EDITORS, "training edits | layer")
    for *gate, opens, leaks in listed:
        key = tuple(cell.replace(",", "") for cell in gate)
        for cell, relation in ((opens, "text_generality"), (leaks, "same_image_same_kind")):
            assert all(map(equal, re.findall(r"\d+", cell), found[(*key, relation)])), key
    assert len(listed) == len({key[:3] for key in found})


def test_dualedit_and_ft_l_behind_one_gate():
    found, corrected = {}, {}
    for row in rows("one-gate-tiny-llava/differences.csv"):
        pair = [(row["editor"], row["gate"]), (row["other"], row["other_gate"])]
        if pair == [("dualedit", "learned"), ("ft-l", "learned")] and row["metric"] == "avg":
            found[row["protocol"]] = [float(row[name]) for name in ("difference", "low", "high")]
            corrected[row["protocol"]] = float(row["p_holm"])
    text = " ".join(RESULTS.split())
    ahead = re.search(r"DualEdit is ([\d.]+) points \(([\d.]+) to ([\d.]+)\) of the average", text)
    behind = re.search(r"teacher-forced and ([\d.]+) \(([\d.]+) to ([\d.]+)\) behind it", text)
    assert ahead is not None and behind is not None
    assert all(map(equal, ahead.groups(), found["paper"]))
    value, low, high = found["generate"]
    assert all(map(equal, behind.groups(), (-value, -high, -low)))
    assert "the first difference stays, p .004, and the second does not, p 1)" in text
    assert round(corrected["paper"], 3) == 0.004 and round(corrected["generate"], 1) == 1


def test_dualedit_and_ft_l_with_the_end_token_behind_one_gate():
    found = {
        (row["protocol"], row["metric"]): row
        for row in rows("one-gate-end-tiny-llava/differences.csv")
        if [row[name] for name in ("editor", "gate", "other", "other_gate")]
        == ["dualedit", "learned", "ft-l", "learned"]
    }
    part = " ".join(RESULTS.split()).split("for both they are level in the average:")[1]
    told = re.findall(r"([-+\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)", part)[:2]
    for protocol, cells in zip(("paper", "generate"), told, strict=True):
        row = found[protocol, "avg"]
        assert all(equal(c, float(row[k])) for c, k in zip(cells, ENDS, strict=True))
        assert float(row["low"]) < 0 < float(row["high"])
    more, less = (found["generate", metric] for metric in ("t_gen", "rel"))
    told = re.search(r"([\d.]+) points \(([\d.]+) to ([\d.]+)\) more of the rephrases", part)
    assert told is not None
    assert all(equal(c, float(more[k])) for c, k in zip(told.groups(), ENDS, strict=True))
    told = re.search(r"FT-L ([\d.]+) \(([\d.]+) to ([\d.]+)\) more of the requests", part)
    assert told is not None
    ends = [-float(less[k]) for k in ("difference", "high", "low")]
    assert all(map(equal, told.groups(), ends))
    told = re.search(r"p (\S+) and (\S+) by Holm", part)
    assert told is not None
    assert all(map(equal, told.groups(), (float(more["p_holm"]), float(less["p_holm"]))))
    runs = {
        (row["editor"], row["gate"], row["runs"])
        for row in rows("one-gate-end-tiny-llava/scores.csv")
    }
    assert {("dualedit", "learned", "3"), ("ft-l", "learned", "3")} <= runs


def test_questions_of_the_real_world_after_an_edit():
    part = " ".join(RESULTS.split("**Questions of the real world.**")[1].split())
    found = {
        (row["questions"], row["gate"]): float(row["mean"])
        for row in rows("real-world-locality-smol-llava/summary.csv")
        if (row["protocol"], row["metric"]) == ("paper", "t_loc")
    }
    told = re.findall(r"([\d.]+) %", part)[:2]
    kinds = ("common facts", "E-VQA's natural questions")
    assert all(equal(one, found[kind, "ungated"]) for one, kind in zip(told, kinds, strict=True))
    assert all(found[kind, "learned"] == 100 for kind in kinds)


def test_how_many_of_the_papers_figures_hold():
    page = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| [")]
    words = {
        re.sub(r"\].*", "", cells[0].strip("| [")): (cells[3], cells[4].strip(" |"))
        for cells in table
    }
    tiny, smol = ([pair[i] for pair in words.values()] for i in (0, 1))
    part = " ".join(RESULTS.split("## The papers' figures")[1].split("##")[0].split())
    told = re.findall(r"(\d+) hold|(\d+) are undecided", part)
    assert ["".join(pair) for pair in told] == [
        str(tiny.count("holds here")),
        str(smol.count("holds here")),
        str(smol.count("undecided here")),
    ]
    alone = [name for name, pair in words.items() if pair[1] == "holds here" != pair[0]]
    assert alone == ["VisEdit, Figure 9"]
    neither = {name for name, pair in words.items() if pair == ("does not hold here",) * 2}
    assert neither == {
        *(f"VisEdit, Figure {i}" for i in (1, 4, 7, 8)),
        *(f"DualEdit, Figure {i}" for i in (1, 4)),
    }


def part_of(start):
    """Numbers with their intervals, and the text, of the paragraph on this page that starts so."""
    text = " ".join(RESULTS.split(start)[1].split("\n\n")[0].split())
    return re.findall(r"([\d.]+) % \(([\d.]+) - ([\d.]+)\)", text), text


def test_which_goals_dualedit_meets_on_smol_llava():
    _, text = part_of("**The goals were**")
    *tokens, whole = map(float, re.findall(r"\d+", text)[:4])
    known = dualedit_scores("dualedit-end-smol-llava")
    metrics = ("rel", "t_gen", "v_gen")
    assert all(
        float(known["paper", m]["mean"]) >= goal for m, goal in zip(metrics, tokens, strict=True)
    )
    assert all(float(known["generate", m]["mean"]) >= whole for m in metrics)
    assert float(known["paper", "t_gen"]["low"]) < tokens[1]
    (without,) = (
        float(row["mean"]) for row in rows("dualedit-end-smol-llava/summary.csv")
        if (row["gate"], row["protocol"], row["metric"]) == ("ungated", "paper", "t_gen")
    )  # fmt: skip
    told = re.search(r"without a gate ([\d.]+) %", text)
    assert told is not None and equal(told[1], without)
    log = " ".join((ROOT / "LOG.md").read_text(encoding="utf-8").split())
    assert "tokens 98.3 / 92.5 / 98.7 instead of" in log and "had 92.5 % there" in text


def test_ike_on_smol_llava():
    told, text = part_of("**IKE.** With one")
    one, four = (rows(f"ike-smol-llava/demonstrations-{count}.csv") for count in (1, 4))
    wanted = [(one, "ike", "rel"), (one, "unedited", "rel"), (one, "ike", "t_loc"),
              (one, "ike", "m_loc"), (four, "ike", "rel")]  # fmt: skip
    for cells, (table, editor, metric) in zip(told, wanted, strict=True):
        (row,) = (r for r in table if (r["editor"], r["metric"]) == (editor, metric))
        assert all(map(equal, cells, (float(row[name]) for name in ("mean", "low", "high"))))
    kinds = {(r["editor"], r["gate"], r["protocol"], r["n"], r["runs"]) for r in (*one, *four)}
    assert kinds == {(e, g, "paper", "20", "1") for e, g in (("unedited", "-"), ("ike", "ungated"))}
    assert "are 20 test edits, seed 0, one protocol (`paper`" in text and "no gate" in text
    assert not re.search(r"cannot learn in context|embedded models do not learn", RESULTS)
    again = re.search(r"`smol-llava` does: (\d+) % of the tokens of 20 edits", RESULTS)
    assert again is not None and equal(again[1], float(told[0][0]))
