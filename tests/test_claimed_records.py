"""How the committed tables were made: every folder says it, and the hours are those recorded."""

import csv
import json
import re
from itertools import chain

import pytest
from claimed import ROOT, equal, rows, shown
from safetensors import safe_open

TABLES = ROOT / "figures" / "tables"
PAGE = (TABLES / "README.md").read_text(encoding="utf-8")
ABOUT = {path.parent.name: json.loads(path.read_text(encoding="utf-8"))
         for path in sorted(TABLES.glob("*/about.json"))}  # fmt: skip
MISSING = "not recorded"
FIELDS = {"commands", "model", "fingerprint", "dtype", "data", "train_edits", "edits", "seed",
          "versions", "platform", "machine", "processes", "seconds"}  # fmt: skip


def test_every_folder_says_how_it_was_made():
    folders = {path.name for path in TABLES.iterdir() if path.is_dir()}
    older = set(
        re.findall(r"`([\w-]+)/`", PAGE.split("were made on two CPU cores")[1].split("| ")[0])
    )
    older -= {name for name in older if name not in folders}
    listed = set(re.findall(r"`([\w-]+)/", "\n".join(re.findall(r"(?m)^\| (.*?) \| ", PAGE))))
    assert folders == listed == set(ABOUT) | older and not set(ABOUT) & older
    assert {name for name in folders if "smol-llava" in name} <= set(ABOUT)


@pytest.mark.parametrize("name", ABOUT)
def test_a_record_is_complete_and_of_the_models_that_ship(name):
    about = ABOUT[name]
    assert set(about) >= FIELDS
    assert about["model"] in name or name == "one-gate-tiny-llava"
    assert set(about["machine"]) == {"cpu", "cores", "threads", "source"}
    if about["versions"] != MISSING:
        assert set(about["versions"]) == {"attrib", "python", "torch", "transformers"}
        pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        for package in ("torch", "transformers"):
            plain = about["versions"][package].partition("+")[0]
            assert f"\n{package}=={plain}" in "\n" + pinned
    assert about["dtype"] == ("bfloat16" if about["model"] == "smol-llava" else "float32")
    assert all(re.match(r"attrib |python -m ", command) for command in about["commands"])
    assert not re.search(r'"(/|~)\w', json.dumps(about)) and " /" not in str(about["commands"])


def test_records_name_one_model_and_the_machine_of_the_costs():
    prints = {}
    for about in ABOUT.values():
        prints.setdefault(about["model"], set()).add(about["fingerprint"])
    assert all(len(found - {MISSING}) == 1 for found in prints.values())
    selected = json.loads((TABLES / "selection-smol-llava" / "layers.json").read_text())
    assert selected["provenance"]["model"]["fingerprint"] in prints["smol-llava"]
    costs = json.loads(
        (ROOT / "benchmarks" / "results" / "analysis-costs-smol-llava.json").read_text()
    )
    known = {(row["machine"]["cpu"], row["machine"]["cores"]) for row in costs["rows"]}
    assert known == {(a["machine"]["cpu"], a["machine"]["cores"]) for a in ABOUT.values()}


def test_numbers_of_edits_and_seeds_are_those_of_the_tables():
    bundled = [name for name in ABOUT if name.startswith("bundled-")]
    for name in ("dualedit-smol-llava", "dualedit-end-smol-llava", *bundled):
        counts = [int(row["n"]) for row in rows(f"{name}/summary.csv")]
        assert max(counts) == ABOUT[name]["edits"]  # some edits have no such neighbour
    for name in ("grid-smol-llava", "grid-smol-llava-40"):
        made = json.loads((TABLES / name / "grid.json").read_text(encoding="utf-8"))
        about, cells = ABOUT[name], rows(f"{name}/grid.csv")
        assert "; ".join(about["commands"]) == made["command"]
        assert (about["train_edits"], about["edits"]) == (made["train_edits"], made["test_edits"])
        seeds = about["seed"] if isinstance(about["seed"], list) else [about["seed"]]
        assert {row["seed"] for row in cells} == set(map(str, seeds))
        trained = {(row["text"], row["visual"], row["seed"]) for row in cells}
        assert len(trained) == about["seconds"]["trainings"]
    ike = chain(*(rows(f"ike-smol-llava/demonstrations-{count}.csv") for count in (1, 4)))
    assert {row["n"] for row in ike} == {str(ABOUT["ike-smol-llava"]["edits"])}
    gates = rows("gates-smol-llava/open.csv")
    trained = {":".join(row[k] for k in ("training_edits", "layer", "steps")) for row in gates}
    assert trained == set(ABOUT["gates-smol-llava"]["seconds"]["training"])
    assert {row["seed"] for row in gates} == {str(ABOUT["gates-smol-llava"]["seed"])}


def recorded(source, part):
    """Seconds that a file records of a part."""
    if source == "LOG.md":
        log = (ROOT / source).read_text(encoding="utf-8")
        return {float(number) for number in re.findall(r"15 minutes \((\d+) s\)", log)}
    if source.endswith(".safetensors"):
        with safe_open(ROOT / source, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        return {facts["before"]["seconds"], facts["progress"]["seconds"]}
    found = json.loads((ROOT / source).read_text(encoding="utf-8"))
    if "rows" in found:
        return {sum(row["seconds"] for row in found["rows"])}
    seconds = found["seconds"]
    parts = seconds.get("training", seconds)
    if part.startswith("trainings of "):
        names = part.removeprefix("trainings of ").lower().split(", ")
        return {sum(parts[name] for name in names)}
    return {sum(v for v in parts.values() if v and not isinstance(v, str))
            if isinstance(parts, dict) else parts}  # fmt: skip


def test_the_hours_of_smol_llava_are_the_recorded_ones():
    with (ROOT / "benchmarks" / "results" / "smol-llava-hours.csv").open(newline="") as file:
        known = list(csv.DictReader(file))
    for row in known:
        assert any(
            equal(row["seconds"], value) for value in recorded(row["source"], row["part"])
        ), row["part"]
    *listed, (last, total) = shown((ROOT / "docs" / "models.md").read_text(), "part | hours |")
    assert [part for part, _ in listed] == [row["part"] for row in known]
    for (_, hours), row in zip(listed, known, strict=True):
        assert equal(hours, float(row["seconds"]) / 3600)
    assert last == "in all, on a CPU"
    assert equal(total, sum(float(r["seconds"]) for r in known if r["device"] == "CPU") / 3600)


def test_the_layer_selection_took_what_the_log_says():
    log = " ".join((ROOT / "LOG.md").read_text(encoding="utf-8").split())
    told = re.search(
        r"minutes for 96 questions \(sweeps (\d+) s and (\d+) s, patching (\d+) s, contributions "
        r"(\d+) s, attention (\d+) s\)", log
    )  # fmt: skip
    names = ("sweep, text", "sweep, visual", "patching", "contributions", "attention")
    seconds = ABOUT["selection-smol-llava"]["seconds"]
    assert told is not None
    assert [int(number) for number in told.groups()] == [seconds[name] for name in names]
