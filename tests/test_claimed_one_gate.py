"""Ten editors behind one gate in docs/results.md: every number is that of the committed table."""

import json
import re

import pytest
from claimed import EDITORS as EDITORS_PAGE
from claimed import FIVE, RESULTS, ROOT, equal, rows, scores, shown

from attrib.results import Result
from editors import EDITORS
from editors.evaluation.tables import summary

TABLE, SMOL = "one-gate-tiny-llava", "one-gate-end-smol-llava"
# Table, file of its scores, head of its table on the page, editors that it lacks
TABLES = [
    (TABLE, "scores.csv", "editor | as it is", set()),
    (SMOL, "summary.csv", "editor on smol-llava | without any gate", set()),
]
REFERENCE = ("dualedit", "learned")
ONCE = {(editor, "ungated") for editor, kind in EDITORS.items() if not kind.is_trained}
PART = " ".join(RESULTS.split("### Ten editors behind one gate")[1].split("\n### ")[0].split())


def differences(table):
    """Average minus that of DualEdit behind the gate, its interval, and p after Holm."""
    found = {}
    for row in rows(f"{table}/differences.csv"):
        one, other = ((row[a], row[b]) for a, b in (("editor", "gate"), ("other", "other_gate")))
        ends = [float(row[name]) for name in ("difference", "low", "high")]
        if row["metric"] != "avg" or REFERENCE not in (one, other):
            continue
        if one == REFERENCE:
            one, ends = other, [-ends[0], -ends[2], -ends[1]]
        found[one, row["protocol"]] = [*ends, float(row["p_holm"])]
    return found


@pytest.mark.parametrize(("table", "file", "head", "lacking"), TABLES)
def test_scores_and_differences(table, file, head, lacking):
    known = {protocol: scores(f"{table}/{file}", protocol) for protocol in ("paper", "generate")}
    own = {e: g for e, g, _ in known["paper"] if g not in ("learned", "-")}
    apart, lines = differences(table), shown(RESULTS, head)
    assert {line[0] for line in lines} == set(own) == set(EDITORS) - lacking
    order = [known["generate"][line[0], "learned", "avg"][0] for line in lines]
    assert order == sorted(order, reverse=True)
    for editor, *cells in lines:
        for gate, cell in zip((own[editor], "learned"), cells[:2], strict=True):
            for metric, part in zip(FIVE, cell.split(" / "), strict=True):
                assert equal(part, known["paper"][editor, gate, metric][0]), (editor, gate, metric)
        for protocol, mean, apart_from in zip(known, cells[2:6:2], cells[3:6:2], strict=True):
            assert equal(mean, known[protocol][editor, "learned", "avg"][0]), (editor, protocol)
            if (editor, "learned") == REFERENCE:
                assert apart_from == ""
                continue
            told = re.findall(r"[-+][\d.]+", apart_from)
            assert all(map(equal, told, apart[(editor, "learned"), protocol])), (editor, protocol)


def test_the_bundled_editors_are_listed_with_their_scores():
    page = (ROOT / "editors" / "pretrained" / "README.md").read_text(encoding="utf-8")
    listed = shown(page, "folder | layers")
    folders = {path.parent for path in (ROOT / "editors" / "pretrained").glob("*/*/editor.json")}
    assert {f"{path.parent.name}/{path.name}/" for path in folders} == {row[0] for row in listed}
    for folder, layers, *cells in listed:
        model, editor, _ = folder.split("/")
        record = json.loads((ROOT / "editors" / "pretrained" / folder / "editor.json").read_text())
        places = record["adapters"]["layers"].items()
        assert layers == ", ".join(f"{modality} {at[0]}" for modality, at in places)
        training = record["trained"]["training"]
        assert training["end_token"] and training["steps"] == 400
        for protocol, cell in zip(("generate", "paper"), cells, strict=True):
            known = scores(f"bundled-{model}/summary.csv", protocol)
            told = zip(FIVE, (*cell.split(" / "), "100", "100"), strict=True)
            assert all(equal(part, known[editor, "learned", metric][0]) for metric, part in told)


def test_the_order_that_the_page_tells():
    known = {
        protocol: scores(f"{TABLE}/scores.csv", protocol) for protocol in ("paper", "generate")
    }
    by = {
        protocol: sorted(EDITORS, key=lambda e: -found[e, "learned", "avg"][0])
        for protocol, found in known.items()
    }
    assert set(by["paper"][:2]) == {"serac", "dualedit"} and by["generate"].index("serac") > 6
    assert differences(TABLE)[("serac", "learned"), "paper"][1] <= 0
    assert by["generate"][:2] == ["ft-l", "ke"]
    low, high = differences(TABLE)[("ft-v", "learned"), "generate"][1:3]
    assert low < 0 < high  # level with DualEdit
    for found in known.values():
        for metric in ("t_loc", "m_loc"):
            assert all(equal("100", found[e, "learned", metric][0]) for e in EDITORS)
    own, gated = (known["paper"]["lte", gate, "t_gen"][0] for gate in ("retrieval", "learned"))
    assert own < gated - 10 and known["paper"]["ike", "learned", "rel"][0] < 10


def test_what_the_page_tells_of_the_ten_on_smol_llava():
    part = " ".join(
        RESULTS.split("### All ten, with and without")[1].split("## Captions")[0].split()
    )
    apart = {key: value for key, value in differences(SMOL).items() if key[0][1] == "learned"}
    (told,) = re.findall(r"does not stay\. - (.*?) do not differ measurably from DualEdit", part)
    level = {
        editor for editor in EDITORS if editor != "dualedit"
        and all(apart[(editor, "learned"), p][1] <= 0 <= apart[(editor, "learned"), p][2]
                for p in ("paper", "generate"))
    }  # fmt: skip
    assert {name.lower() for name in re.split(", | and ", told)} == level
    (told,) = re.findall(r"from DualEdit behind the gate those of (.*?) stay after", part)
    stay = {e for ((e, _), p), v in apart.items() if v[3] < 0.05 and p != "exact"}
    assert {name.lower() for name in re.split(", | and ", told)} == stay
    for protocol in ("paper", "generate"):
        value, low, _, corrected = apart[("serac", "learned"), protocol]
        assert low > 0 and corrected > 0.05
        assert value == max(v[0] for (_, p), v in apart.items() if p == protocol)
    plain = {
        k: v[0] for k, v in scores(f"{SMOL}/summary.csv", "paper").items() if k[1] != "learned"
    }
    by = sorted((value, e) for (e, g, m), value in plain.items() if m == "m_loc" and g != "-")
    assert [e for _, e in by[:2]] == ["serac", "dualedit"] and by[-1][1] == "tp"
    for form, key in (
        (r"\(M-Loc ([\d.]+)\)", ("dualedit", "m_loc")),
        (r"SERAC has ([\d.]+) % w", ("serac", "t_gen")),
        (r"IKE gives ([\d.]+) % of the tokens", ("ike", "rel")),
    ):  # fmt: skip
        told = re.search(form, part)
        assert told is not None and equal(told[1], plain[key[0], "ungated", key[1]]), key
    assert plain["lte", "ungated", "rel"] == plain["ft-l", "ungated", "rel"] == 100
    assert 30 < plain["tp", "ungated", "t_gen"] < 37  # "one of three rephrases"
    assert f"over all {len(rows(f'{SMOL}/differences.csv')):,} comparisons" in part


def test_ike_on_all_edits():
    told = re.search(r"On 300 edits one demonstration gives ([\d.]+) %", " ".join(RESULTS.split()))
    assert told is not None
    assert equal(told[1], scores(f"{SMOL}/summary.csv", "paper")["ike", "ungated", "rel"][0])


def test_what_the_end_token_is_worth_on_smol_llava():
    part = " ".join(RESULTS.split("**What the end token is worth.**")[1].split())
    named = ("serac", "visedit", "ke")
    wanted = [
        scores(f"{table}/summary.csv", "generate")[editor, "ungated", "rel"][0]
        for table in ("one-gate-smol-llava", SMOL) for editor in named
    ]  # fmt: skip
    sentence = part.split("SERAC gave ")[1]
    assert all(map(equal, re.findall(r"\d+(?:\.\d+)?", sentence)[:6], wanted))


def test_how_many_edits_the_ten_on_smol_llava_were_scored_on():
    edits = {r["editor"]: int(r["n"]) for r in rows(f"{SMOL}/summary.csv") if r["metric"] == "rel"}
    about = json.loads((ROOT / "figures" / "tables" / SMOL / "about.json").read_text("utf-8"))
    assert about["edits"] == {e: edits[e] for e in EDITORS} == dict.fromkeys(EDITORS, 300)
    for editor, steps in (
        ("serac", 800),
        ("mend", 150),
        ("ke", 120),
        ("lte", 60),
        ("dualedit", 240),
    ):
        assert any(
            f"--editor {editor} " in c and f"--steps {steps} " in c for c in about["commands"]
        )


def test_the_table_is_that_of_the_committed_scores_of_each_edit():
    folder = ROOT / "figures" / "tables" / SMOL
    results = [Result.load(folder / "scores" / editor / "scores.parquet") for editor in EDITORS]
    found = summary(results).to_csv(index=False)
    known = (folder / "summary.csv").read_text(encoding="utf-8")
    assert sorted(found.splitlines()) == sorted(known.splitlines())


def test_seeds_and_comparisons():
    runs = {
        (r["editor"], r["gate"]): int(r["runs"])
        for r in rows(f"{TABLE}/scores.csv")
        if r["editor"] != "unedited"
    }
    assert {key for key, num in runs.items() if num == 1} == ONCE
    assert {num for key, num in runs.items() if key not in ONCE} == {3}
    assert f"over all {len(rows(f'{TABLE}/differences.csv')):,} comparisons" in PART


def test_what_the_table_cost():
    about = json.loads((ROOT / "figures" / "tables" / TABLE / "about.json").read_text("utf-8"))
    hours = sum(sum(one.values()) for one in about["seconds"].values() if isinstance(one, dict))
    (told,) = re.findall(r"took ([\d.]+) CPU hours for all ten", EDITORS_PAGE)
    assert equal(told, hours / 3600)
    assert {name.split(", ")[0] for name in about["seconds"]} == set(EDITORS)
