"""Gates, grids and costs on the pages: every number is that of a committed file, rounded."""

import json
import re

from claimed import BENCHMARKS, EDITORS, FIVE, LAYERS, RESULTS, ROOT, equal, rows, shown


def test_open_rates_of_the_learned_gate():
    names = {
        "the request itself": "request", "cropped to 90 % of each side": "crop",
        "as a JPEG of quality 30": "jpeg", "mirrored": "flip", "in a frame": "frame",
        "in a new rendering": "visual_generality", "in other words": "text_generality",
        "same picture, other question": "same picture, other question",
    }  # fmt: skip
    pairs = {
        "of these": ("same_image_same_kind", "same_image_other_kind"),
        "same question": ("same_question_other_image", "nearest_picture"),
        "unrelated picture": ("visual_locality", "text_locality"),
    }
    found = {(r["gate"], r["input"]): r for r in rows("gate-robustness/open.csv")}
    for label, must, *cells in shown(EDITORS, "input | must | as trained by default"):
        inputs = [names[label]] if label in names else pairs[re.split("[,:/]", label)[0].strip()]
        for gate, cell in zip(("trained", "without changed pictures"), cells, strict=True):
            for one, part in zip(inputs, cell.split(" / "), strict=True):
                known = found[gate, one]
                assert known["must"] == must
                wanted = [100 * float(known[name]) for name in ("open", "low", "high")]
                assert all(map(equal, re.findall(r"[\d.]+", part), wanted)), (label, gate)


def test_kinds_of_negatives_that_the_gate_was_not_trained_on():
    found = {(r["gate"], r["input"]): 100 * float(r["open"])
             for r in rows("gate-robustness/held-out-kinds.csv")}  # fmt: skip
    text = " ".join(EDITORS.split("**Kinds that it was not trained on**")[1].split())
    missed, known, *others = re.findall(r"[\d.]+(?= %)", text)[:4]
    kind = "same_image_same_kind"
    assert equal(missed, found[f"without {kind}", kind]) and equal(known, found["trained", kind])
    for told, kind in zip(
        others, ("same_image_other_kind", "same_question_other_image"), strict=True
    ):
        assert equal(told, found[f"without {kind}", kind])
    (kept,) = re.findall(r"keeps ([\d.]+) % of rephrases", text)
    assert equal(kept, found["trained", "text_generality"])


def test_scores_of_the_grid_and_the_regret_of_each_rule():
    by = {}
    for row in rows("grid-tiny-llava/grid.csv"):
        place = tuple(float(row[m]) if row[m] else None for m in ("text", "visual"))
        by.setdefault((place, row["gate"], row["metric"]), []).append(100 * float(row["value"]))
    for label, *cells in shown(LAYERS, "adapters at (text, visual) | Rel"):
        pair = re.match(r"\((\d), (\d)\)", label.strip("*"))
        alone = re.match(r"(visual|text) (\d)", label)
        place = (
            tuple(map(float, pair.groups())) if pair
            else (None, float(alone[2])) if alone[1] == "visual" else (float(alone[2]), None)
        )  # fmt: skip
        wanted = [(metric, "learned") for metric in (*FIVE, "avg")] + [("avg", "none")]
        for (metric, gate), cell in zip(wanted, cells, strict=True):
            values = by[place, gate, metric]
            mean = cell.strip("* ").partition(" ±")[0]
            assert len(values) == 3 and equal(mean, sum(values) / 3), (label, metric)
    regret = {r["pick"]: r for r in rows("grid-tiny-llava/regret.csv")}
    own = regret["consensus"]
    told = re.findall(r"Regret of the consensus: ([\d.]+) points \((-[\d.]+) to ([\d.]+)", LAYERS)[
        0
    ]
    assert all(equal(a, 100 * float(own[k]))
               for a, k in zip(told, ("regret", "low", "high"), strict=True))  # fmt: skip
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"lose {told[0]} points against the best of 20 places trained for 100 steps" in readme
    for text, page in (("Of the middle layer: {:.1f}", LAYERS), ("middle layer: {:.1f}", readme)):
        assert text.format(100 * float(regret["middle layer"]["regret"]) + 1e-9) in page


def test_ratios_of_attribution():
    files = ("attribution-small-cpu", "passes-small-cpu", "peers-small-cpu")
    one, passes, peers = (
        {r["what"]: r for r in json.loads(
            (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        )["ratios"]} for name in files
    )  # fmt: skip
    sweeps = [one[f"sweep, {name}, over all layers"] for name in ("text", "visual", "both")]
    wanted = [
        [one["heatmaps, token by token, all layers"]],
        [one["heatmaps, neighbourhoods of radius 3, all layers"]],
        [passes["all analyses of one pass, over a plain one"]],
        [passes["capture for them, over a plain one"]],
        sweeps,
        [one["output_attentions=True, output_hidden_states=True, over our capture"]],
        [one["TransformerLens run_with_cache, over our capture"]],
        [one["sweep, text, by TransformerLens run_with_hooks"]],
        [peers["nnsight trace of module outputs, without attention rows, over our capture"]],
    ]
    table = shown(BENCHMARKS, "what | time ratio | memory ratio")
    for (label, times, memory), known in zip(table, wanted, strict=True):
        told = re.findall(r"[\d.]+", times)
        numbers = [[r[k] for k in ("median", "low", "high")] for r in known]
        flat = numbers[0] if len(known) == 1 else [n[0] for n in numbers]
        assert all(map(equal, told, flat)), label
        parts = [r["memory ratio"] for r in known]
        assert all(map(equal, memory.split(" / "), parts)), label
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{table[0][1].split()[0]} times faster heatmaps" in readme


def test_many_edits():
    file = ROOT / "benchmarks" / "results" / "many-edits.json"
    found = json.loads(file.read_text(encoding="utf-8"))["editors"]
    held = [one for one in found if one["part"] == "held"]
    for one, (label, rel, m_loc, size, look_up, ratio) in zip(
        held, shown(BENCHMARKS, "held at once"), strict=True
    ):
        assert label.lower().startswith(one["editor"])
        means = {m: [100 * r["scores"][m]["mean"] for r in one["rows"]] for m in ("rel", "m_loc")}
        # Half of a tenth is rounded to even.
        assert all(map(equal, rel.split(" / "), means["rel"])), label
        assert all(map(equal, m_loc.split(" / "), means["m_loc"][::3])), label
        last, share = one["rows"][-1], 1 if "in all" in size else 1000
        assert equal(re.findall(r"[\d,]+\d", size)[0], last["bytes"] / share)
        if look_up != "none":
            assert equal(look_up.split()[0], last["look-up ratio"]["median"])
        assert equal(ratio, last["pass ratio"]["median"])
    for one, (label, rel, m_loc, ratio) in zip(
        [one for one in found if one["part"] == "sequential"],
        shown(BENCHMARKS, "in sequence"), strict=True,
    ):  # fmt: skip
        assert label.lower() == one["editor"]
        means = {m: [100 * r["scores"][m]["mean"] for r in one["rows"]] for m in ("rel", "m_loc")}
        assert all(map(equal, rel.split(" / "), means["rel"])), label
        assert all(map(equal, m_loc.split(" / "), means["m_loc"][::2])), label
        assert equal(ratio, one["rows"][-1]["pass ratio"]["median"])


def test_insertion_and_deletion():
    file = ROOT / "benchmarks" / "results" / "deletion.json"
    found = {(r["model"], r["method"]): r
             for r in json.loads(file.read_text(encoding="utf-8"))["rows"]}  # fmt: skip
    names = {
        "heatmap, 3 std (paper)": "heatmap", "heatmap, 0.1 std": "heatmap, noise 0.1",
        "raw attention": "attention", "gradient x input, all layers": "gradient",
        "gradient x input, layer 0": "gradient, layer 0", "random order": "random",
    }  # fmt: skip
    models = ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
    for label, *cells in shown(RESULTS, "map | `tiny-llava`"):
        for model, cell in zip(models, cells, strict=True):
            known = found[model, names[label]]
            areas = (known["deletion"][0], known["insertion"][0])
            assert all(map(equal, cell.split(" / "), areas)), (label, model)


def test_the_grid_of_captions_and_that_of_visedit():
    by = {
        (float(r["text"]), float(r["visual"]), r["gate"]): 100 * float(r["value"])
        for r in rows("grid-tiny-llava-captions/grid.csv")
        if r["metric"] == "avg"
    }
    for label, *cells in shown(LAYERS, "adapters at (text, visual) | behind one"):
        text, visual = map(float, re.match(r"\((\d), (\d)\)", label).groups())
        for gate, cell in zip(("learned", "none"), cells, strict=True):
            assert not cell or equal(cell, by[text, visual, gate]), label
    visual = {}
    for row in rows("grid-tiny-llava-visedit/scores.csv"):
        visual.setdefault(int(row["visual"]), []).append(100 * float(row["score"]))
    told = re.findall(r"VisEdit alone, by visual layer ([\d, ]+): ([\d., ]+\d)", LAYERS)[0]
    for layer, cell in zip(*(part.split(", ") for part in told), strict=True):
        assert equal(cell, sum(visual[int(layer)]) / len(visual[int(layer)])), layer


def test_costs_on_a_gpu():
    file = ROOT / "benchmarks" / "results" / "gpu.json"
    found = {r["step"]: r for r in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    (sweeps, training, scoring, edits) = shown(BENCHMARKS, "step | time | peak memory, GiB")
    parts = [found[f"sweep {name}"]["minutes for 1,000"] for name in ("text", "visual", "both")]
    assert all(map(equal, re.findall(r"\d+", sweeps[1]), parts))
    names = [name.lower() for name in training[0].split(": ")[1].split(" / ")]
    hours = [found[f"train {name}"]["hours for 50,000"] for name in names]
    assert all(map(equal, re.findall(r"[\d.]+", training[1]), hours))
    assert equal(scoring[1].split()[0], found["evaluation"]["minutes for 2,093"])
    times = {one["editor"]: one["seconds for an edit"] for one in found["edits"]["editors"]}
    names = edits[0].split(": ")[1].lower().split(", ")
    assert sorted(names) == sorted(times)
    for name, told in zip(names, re.findall(r"[\d.]+", edits[1]), strict=True):
        assert equal(told, times[name]), name
    device = {r["device"] for r in found.values()}
    assert all(one in " ".join(BENCHMARKS.split()) for one in device)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "only random weights were run, on CPUs and one GPU" in readme


def test_of_two_edits_of_one_input_the_newer_holds():
    path = ROOT / "benchmarks" / "results" / "conflicts.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    counts, text = found["counts"], " ".join(EDITORS.split())
    num = found["pairs"]
    part = text.split("`python -m benchmarks.conflicts`")[1].split("Thresholds")[0]
    assert f"each of {num} test edits" in part and f"all {2 * num} edits" in part
    (told,) = re.findall(r"\(the new target for (\d+)\)", part)
    assert int(told) == counts["answers with the newer target"]
    wanted = re.findall(r"for (\d+)", part.replace(f"(the new target for {told})", ""))
    names = ("the gate picks the newer", "answers as the newer alone")
    names += ("the older edit's bits after the newer is unlearned",)
    names += ("the unedited bits after both are",)
    assert wanted == [str(counts[name]) for name in names]
    assert counts["the edits change the logits"] == num  # a control


def test_gates_by_seed():
    found = {
        (r["seed"], r["input"]): float(r["open"]) for r in rows("one-gate-tiny-llava/gates.csv")
    }
    part = " ".join(EDITORS.split("Gates differ by seed:")[1].split("Other")[0].split())
    numbers = re.findall(r"\d+\.\d|100(?= and)|\b300\b", part)
    kinds = ("text_generality", "frame", "same_image_same_kind")
    wanted = [found[str(seed), kind] for kind in kinds for seed in range(3)]
    assert int(numbers[0]) == 300 and all(map(equal, numbers[1:], wanted))
    assert len(numbers) == 1 + len(wanted)
