"""Costs on README and docs/benchmarks.md: every number is that of a committed file, rounded."""

import json
import re

from claimed import BENCHMARKS, ROOT, equal, shown

from benchmarks.first_commands import timed_commands

FILES = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = " ".join(BENCHMARKS.split())


def of(name):
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))


def test_the_first_commands():
    found, stated = of("first-commands"), timed_commands()
    known = {row["command"]: row for row in found["rows"]}
    assert list(known) == [f"attrib {command}" for command in stated] and len(stated) == 4
    for command, seconds in stated.items():
        row = known[f"attrib {command}"]
        assert len(row["CPU seconds"]) == found["rounds"] == 3
        assert equal(seconds, row["median CPU seconds"]), command
    longest = max(max(r["CPU seconds"]) / r["median CPU seconds"] for r in known.values())
    assert equal(re.findall(r"the\s+longest took ([\d.]+) times as long", README)[0], longest)
    assert found["threads"] == 1 and found["instructions"] == "AVX512"
    told = " ".join(README.split())
    assert f"CPU seconds of one core of an {found['machine']['cpu']} with AVX-512" in told


def test_how_the_cost_of_a_pass_grows():
    low, high = re.findall(r"all analyses of one pass cost ([\d.]+) to ([\d.]+) plain", TEXT)[0]
    ratios = {row["what"]: row["median"] for row in of("attribution-small-cpu")["growth"]}
    assert equal(low, min(ratios.values())) and equal(high, max(ratios.values()))
    sizes = [tuple(map(int, re.findall(r"\d+", what))) for what in ratios]
    tokens, layers = zip(*sizes, strict=True)
    ends = f"From {min(tokens)} to {max(tokens):,} visual tokens, and from {min(layers)} to "
    assert f"{ends}{max(layers)} layers" in TEXT


def test_what_cached_prefixes_are_worth():
    told, places = re.findall(r"up ([\d. /]+\d) times with both adapters at layer ([\d /]+)", TEXT)[
        0
    ]
    rows = of("editing-cpu")["rows"]
    for ratio, place, row in zip(told.split(" / "), places.split(" / "), rows, strict=True):
        assert int(place) == row["text"] == row["visual"] and equal(ratio, row["median"])


def test_training_against_the_older_version():
    found = {(r["model"], r["text"], r["visual"]): r for r in of("editing-cpu")["training"]}
    named = []
    for one, ratio, other, small in shown(BENCHMARKS, "adapters at text, visual | `tiny-llava`"):
        for model, places, value in (("tiny-llava", one, ratio), ("small", other, small)):
            named.append((model, *map(int, places.split(", "))))
            assert equal(value, found[named[-1]]["best"]), named[-1]
    assert sorted(named) == sorted(found)
    assert "losses agree to 3e-6" in TEXT and "less than 2.5 of the older version's steps" in TEXT
    assert max(r["largest relative difference of losses"] for r in found.values()) < 3e-6
    assert max(r["files cost, steps of old"] for r in found.values()) < 2.5


def test_evaluation_against_the_older_version():
    found = {row["editor"]: row for row in of("editing-cpu")["evaluation"]}
    columns = ("old, s", "new, s", "ratio", "ratio, answers known", "ratio, answers on disk")
    for label, *cells in shown(BENCHMARKS, "editor | old, s | new, s"):
        row = found.pop(label.strip("`"))
        assert row["edits"] == 100 and row["equal scores"] == 5994
        for cell, column in zip(cells, columns, strict=True):
            assert equal(cell, row[column]), (label, column)
    assert not found and "commit `a420e03`" in TEXT and "all 5,994 scores equal" in TEXT


def test_memory_of_one_edit():
    found = {row["editor"]: row for row in of("many-edits")["memory"]["rows"]}
    listed = []
    for label, held, in_file in shown(BENCHMARKS, "editor | one edit, bytes held"):
        names = re.findall(r"[a-z]+(?:-[lv])?", re.split("[,:]", label)[0])
        listed += names
        if weights := re.findall(r"the weights: ([\d,]+)", label):
            assert all(equal(weights[0], found[name]["dense bytes"]) for name in names)
        for cell, column in ((held, "bytes held"), (in_file, "bytes on disk")):
            for name, part in zip(names, cell.split(" / "), strict=True):
                assert equal(part, found[name][column]), (name, column)
    assert sorted(listed) == sorted(found)


def test_full_size_on_a_cpu():
    steps = {"load": "load", "heatmaps": "heatmap", "text": "sweep", "one training": "train",
             "one edit": "edit", "all checks": "check"}  # fmt: skip
    names = ("blip2-opt-2.7b", "minigpt4-7b", "llava-1.5-7b")
    found = {name: {row["step"]: row for row in of(f"full-size-{name}")["rows"]} for name in names}
    for label, *cells in shown(BENCHMARKS, "step: seconds, peak memory over weights"):
        (step,) = (step for start, step in steps.items() if label.startswith(start))
        for name, cell in zip(names, cells, strict=True):
            row = found[name][step]
            seconds, _, peak = cell.partition(" s, ")
            late = name == "llava-1.5-7b" and step in ("train", "edit", "check")
            assert equal(seconds, row["seconds of the step" if late else "seconds"]), (name, step)
            assert equal(peak, row["peak MiB"] / row["weights MiB"]), (name, step)
            assert row["date"] == ("2026-11-28" if late else "2026-11-27")


def test_ratios_and_memory_on_a_gpu():
    found = {row["step"]: row for row in of("gpu")["rows"]}
    known = found["attribution"]["ratios"]
    page = BENCHMARKS.split("**On a GPU.**")[1]
    table = shown(page, "what | time ratio | memory ratio")
    wanted = [[one] for one in known[:4]] + [known[4:7]] + [[one] for one in known[7:]]
    for (label, times, memory), rows in zip(table, wanted, strict=True):
        numbers = [[row[k] for k in ("median", "low", "high")] for row in rows]
        flat = numbers[0] if len(rows) == 1 else [n[0] for n in numbers]
        told = re.findall(r"[\d.]+", times)
        assert all(map(equal, told, flat)) and len(told) == len(flat), label
        parts = [row["memory ratio"] for row in rows]
        assert all(map(equal, memory.split(" / "), parts)), label
    sweeps, training, scoring, edits = shown(page, "step | time | peak memory, GiB")

    def peaks(names):
        return [found[name]["device peak MiB"] / 1024 for name in names]

    assert all(map(equal, sweeps[2].split(" / "), peaks(f"sweep {n}" for n in
                                                        ("text", "visual", "both"))))  # fmt: skip
    names = training[0].split(": ")[1].lower().split(" / ")
    assert all(map(equal, training[2].split(" / "), peaks(f"train {name}" for name in names)))
    assert equal(scoring[2], peaks(["evaluation"])[0])
    each = [one["peak MiB"] / 1024 for one in found["edits"]["editors"]]
    low, high = edits[2].split(" to ")
    assert equal(low, min(each)) and equal(high, max(each))
