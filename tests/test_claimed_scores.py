"""Scores of editors in docs/results.md: every number is that of a committed table, rounded."""

import re

import pytest
from claimed import FIVE, RESULTS, SEVEN, equal, rows, scores, shown

import attrib

LLAVA, CAPTIONS = "ten-editors/tiny-llava-scenes-vqa", "ten-editors/tiny-llava-scenes-captions"


@pytest.mark.parametrize(("protocol", "at"), [("generate-prefix", 0), ("paper", 1)])
def test_scores_at_the_selected_layers(protocol, at):
    page = "\n| editor, gate | Rel" + RESULTS.split("\n| editor, gate | Rel")[at + 1]
    for label, *cells in shown(page, "editor, gate | Rel"):
        name, _, gate = label.partition(", ")
        editor, _, model = name.lower().partition(" on ")
        seeds = gate == "learned"
        table = f"{model or 'tiny-llava'}-scenes-vqa/scores.csv" if seeds else "gates/summary.csv"
        found = scores(table, protocol)
        for metric, cell in zip(SEVEN, cells, strict=True):
            mean, _, spread = cell.partition(" ± ")
            value, known = found[editor, gate or "-", metric]
            assert equal(mean, value), (label, metric)
            assert bool(spread) == bool(known) and (not spread or equal(spread, float(known)))


def test_the_papers_depths_after_400_steps():
    text = " ".join(RESULTS.split())
    told = re.search(
        r"Avg ([\d.]+) there and ([\d.]+) at layer 1 behind .* leak less \(M-Loc ([\d.]+) against "
        r"([\d.]+), Avg ([\d.]+) against ([\d.]+); one seed, 200 validation edits",
        text,
    )
    assert told
    found = {(row["text"], row["visual"], row["gate"], row["metric"]): 100 * float(row["value"])
             for row in rows("grid-400-tiny-llava/grid.csv")}  # fmt: skip
    columns = ("learned", "avg"), ("none", "m_loc"), ("none", "avg")
    known = [found[*at, *column] for column in columns for at in (("5", "6"), ("1", "1"))]
    assert all(equal(*pair) for pair in zip(told.groups(), known, strict=True))
    assert abs(known[0] - known[1]) < 1 and known[2] > known[3]


def test_ten_editors_and_their_costs():
    found = scores(f"{LLAVA}/scores.csv", "paper")
    gates = {editor: gate for editor, gate, _ in found}
    spent = {row["editor"]: row for row in rows(f"{LLAVA}/costs.csv")}
    for editor, *cells in shown(
        RESULTS, "editor | Rel | T-Gen | V-Gen | T-Loc | M-Loc | same image"
    ):
        for metric, cell in zip(SEVEN, cells, strict=False):
            assert equal(cell, found[editor, gates[editor], metric][0]), (editor, metric)
        assert cells[7] in ("-", spent[editor]["training, s"])
        assert equal(cells[8], float(spent[editor]["edit, ms"]))


def test_the_other_two_models():
    for label, *cells in shown(RESULTS, "editor | tiny-blip2 | tiny-minigpt4"):
        for model, cell in zip(("tiny-blip2", "tiny-minigpt4"), cells, strict=True):
            found = scores(f"ten-editors/{model}-scenes-vqa/scores.csv", "paper")
            (gate,) = {gate for editor, gate, _ in found if editor == label.lower()}
            for metric, part in zip(FIVE, cell.split(" / "), strict=True):
                assert equal(part, found[label.lower(), gate, metric][0]), (label, model, metric)


def test_ten_editors_on_captions():
    forced, whole = (scores(f"{CAPTIONS}/scores.csv", p) for p in ("paper", "generate-prefix"))
    spent = {row["editor"]: row for row in rows(f"{CAPTIONS}/costs.csv")}
    gates = {editor: gate for editor, gate, _ in forced}
    for editor, tokens, written, *cells in shown(RESULTS, "editor | Rel / T-Gen / V-Gen, tokens"):
        for text, table in ((tokens, forced), (written, whole)):
            for metric, part in zip(FIVE[:3], text.split(" / "), strict=True):
                assert equal(part, table[editor, gates[editor], metric][0]), (editor, metric)
        for metric, cell in zip((*FIVE[3:], SEVEN[-1]), cells, strict=False):
            assert equal(cell, forced[editor, gates[editor], metric][0]), (editor, metric)
        if editor != "unedited":
            columns = ("training, s", "edit, ms", "CPU in all, min")
            known = [float(spent[editor][name].replace(",", "")) for name in columns]
            assert all(map(equal, cells[3:6], known)), editor


def test_gates_on_captions():
    forced, whole = (scores("gates-captions/summary.csv", p) for p in ("paper", "generate-prefix"))
    for label, tokens, written, *cells in shown(RESULTS, "editor, gate | Rel, T-Gen, V-Gen"):
        name, _, gate = label.partition(", ")
        key = name.lower(), gate or "-"
        for text, table in ((tokens, forced), (written, whole)):
            for metric, part in zip(FIVE[:3], text.split(" / "), strict=True):
                assert equal(part, table[(*key, metric)][0]), (label, metric)
        for metric, cell in zip((*FIVE[3:], SEVEN[-1]), cells, strict=True):
            assert equal(cell, forced[(*key, metric)][0]), (label, metric)


def test_what_each_part_of_an_adapter_is_worth():
    dual, vis = (
        {(r["switch"], r["metric"]): float(r["value"]) for r in rows(f"switches/{name}.csv")}
        for name in ("dualedit", "visedit")
    )
    text = " ".join(RESULTS.split("## What each part")[1].split("\n## ")[0].split())
    (rel,) = re.findall(r"nothing is installed \(Rel (\d+)\)", text)
    assert equal(rel, vis["- CA (no cross-attention)", "rel"])
    low, high, cost = re.findall(r"M-Loc from (\d+) to (\d+) and costs (\d+) points", text)[0]
    assert equal(low, vis["- IM (no mapper)", "m_loc"]) and equal(high, vis["as preset", "m_loc"])
    assert equal(cost, vis["- IM (no mapper)", "rel"] - vis["as preset", "rel"])
    worth = re.findall(r"standardised channels are worth (\d+) .* signal (\d+), .* (\d+)\.", text)[
        0
    ]
    switches = ("channels not standardized", "signal: whole edit", "Adam at 0.005 instead of Muon")
    for points, switch in zip(worth, switches, strict=True):
        assert equal(points, dual["as preset", "avg"] - dual[switch, "avg"]), switch


def test_what_the_locality_questions_are():
    samples = list(attrib.data.load("scenes-vqa", split="test", limit=500))
    facts = {(r.prompt, r.target) for one in samples for r in one.text_locality}
    assert f"The 500 questions of T-Loc are {len(facts)} different facts" in RESULTS
    other = sum(all(r.prompt != one.request.prompt for r in one.visual_locality) for one in samples)
    assert f"{other} of 500 unrelated images come with another question" in RESULTS


def test_how_far_generation_lies_below_teacher_forcing():
    forced, written = (scores(f"{LLAVA}/scores.csv", p) for p in ("paper", "generate-prefix"))
    lower = {key: forced[key][0] - written[key][0] for key in forced if key[2] in SEVEN}
    apart = {
        editor: max(
            v for (name, _, metric), v in lower.items() if name == editor and "loc" in metric
        )
        for editor in ("ike", "lte")
    }
    rest = [v for (name, _, m), v in lower.items()
            if name != "unedited" and not (name in apart and m not in FIVE[:3])]  # fmt: skip
    text = " ".join(RESULTS.split())
    low, high, ike, lte = re.findall(
        r"`generate-prefix` is (\d+) to (\d+) points lower, except for the locality of IKE "
        r"\(up to (\d+) lower\) and of LTE \(up to (\d+) lower",
        text,
    )[0]
    assert min(rest) >= float(low) - 0.5 and equal(high, max(rest))
    assert equal(ike, apart["ike"]) and equal(lte, apart["lte"])
