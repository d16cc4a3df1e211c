"""The bundled models on docs/models.md: every number is that of a card or of a committed file."""

import json
import re

from claimed import ROOT, equal, shown

from attrib.zoo.__main__ import write_card
from benchmarks.smol_llava.card import PUBLISHED

CARDS = ROOT / "attrib" / "zoo" / "weights"
NAMES = ("tiny-llava", "tiny-blip2", "tiny-minigpt4", "smol-llava")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TEXT = " ".join(MODELS.split())


def card(name, head):
    """A table of a model's card, by its first cell."""
    page = (CARDS / name / "README.md").read_text(encoding="utf-8")
    return {label: cells for label, *cells in shown(page, head)}


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def told(pattern):
    """The numbers of the one sentence that has this form."""
    (found,) = re.finditer(pattern, TEXT)
    return found.groups()


def test_scores_of_the_bundled_models_are_those_of_their_cards():
    table = shown(MODELS, "model | family | questions")
    assert [label.split("`")[0] for label, *_ in table] == list(NAMES)
    for name, row in zip(NAMES, table, strict=True):
        known = {k: v[0] for k, v in card(name, "measurement | value").items()}
        kinds = {k.partition("/")[2]: float(v.rstrip("%")) for k, v in known.items() if "/" in k}
        worst = min(kinds, key=kinds.__getitem__)
        assert row[3] == f"{kinds[worst]} % ({worst})", name
        measured = ("vqa", "vqa, other picture", "captions, exact", "facts")
        for cell, what in zip((row[2], *row[4:]), measured, strict=True):
            assert cell.replace(" ", "") == known[what], (name, what)
    shares = [float(row[2].rstrip(" %")) for row in table[:3]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{min(shares):.0f} to {max(shares):.0f} % of questions right" in readme


def test_noise_matters_most_in_the_first_layer_of_models_trained_from_scratch():
    assert (
        "noise on visual tokens matters most in the first layer, and so does noise on words" in TEXT
    )
    for name in NAMES[:3]:
        curve = card(name, "layer | KL visual | KL text")
        for column in (0, 1):
            values = [float(cells[column]) for cells in curve.values()]
            assert max(values) == values[0], name


def test_what_smol_llava_still_knows():
    found = result("smol-llava")
    asked, share, low, high, others, kept = told(
        r"Of (\d+) common facts .*? still knows (\d+) % \(interval (\d+) to (\d+)[;)].*?"
        r"of (\d+) everyday questions of kinds that no training has, (\d+) %"
    )
    common, everyday = found["common"], found["everyday"]
    assert (int(asked), int(others)) == (common["known"], everyday["known"])
    assert equal(share, 100 * common["still"] / common["known"])
    assert equal(kept, 100 * everyday["still"] / everyday["known"])
    page = (CARDS / "smol-llava" / "README.md").read_text(encoding="utf-8")
    ends = re.findall(r"([\d.]+)% of\s+these \(([\d.]+)% - ([\d.]+)%\)", page)[0]
    assert all(map(equal, (share, low, high), map(float, ends)))
    assert "changes in more than half of the answers" in TEXT
    assert max(common["same"]["mean"], everyday["same"]["mean"]) < 0.5


def test_where_smol_llava_reads_its_picture():
    layers = result("smol-llava")["layers"]
    mean = {name: [one["mean"] for one in curve] for name, curve in layers.items()}
    num, least, most = told(
        r"moves the answer by ([\d.]+) nats or more in the first (\d+) of 30 layers, and by at "
        r"most ([\d.]+) after"
    )
    first, noise = int(least), mean["noise visual"]
    assert len(noise) == 30 and min(noise[:first]) >= float(num)
    assert max(noise[first:]) <= float(most)
    at = mean["attention visual_sum"]
    layer = int(told(r"read at layer (\d+): with another")[0])
    assert at.index(max(at)) == layer == first
    before, text, later, asked, apart = told(
        r"in (\d+) % of the questions, of layer 23 in none; .*?\((\d+) and (\d+) %; (\d+) "
        r"questions, of which (\d+) tell"
    )
    assert equal(before, 100 * mean["patch visual"][22]) and not mean["patch visual"][23]
    assert equal(text, 100 * mean["patch text"][22]) and equal(later, 100 * mean["patch text"][23])
    assert int(asked) == layers["noise visual"][0]["count"]
    assert int(apart) == layers["patch visual"][0]["count"]
    norms, sink = mean["first norm"], int(told(r"norm of the first token jumps at layer (\d+),")[0])
    assert norms.index(max(norms)) == sink and norms[sink] > 10 * max(norms[:sink])
    attended = [one["mean"] for one in layers["attention bos"]]
    assert int(told(r"from layer (\d+) on it is an attention sink")[0]) == sink + 1
    assert min(attended[sink + 1 :]) > 0.1 and attended[sink] < 0.01


def test_two_pictures():
    found = result("two-pictures")
    pairs, both, alone, heat, attention = told(
        r"\((\d+) pairs, in both orders\), is right in (\d+) % of the prompts, and in (\d+) % with "
        r"that scene alone\. .*? gets (\d+) % of the heat .*? and (\d+) % of the attention"
    )
    best = {}
    for row in found["rows"]:
        best[row["method"]] = max(best.get(row["method"], 0), row["share"])
    assert (int(pairs), found["orders"]) == (found["pairs"], 2)
    assert equal(both, 100 * found["rows"][0]["right"])
    assert equal(alone, 100 * found["rows"][0]["right alone"])
    assert equal(heat, 100 * best["heatmap, noise 0.1"])
    assert equal(attention, 100 * best["attention"])


def test_how_smol_llava_was_trained():
    log = " ".join((ROOT / "LOG.md").read_text(encoding="utf-8").split())
    page = (CARDS / "smol-llava" / "README.md").read_text(encoding="utf-8")
    steps, rows, seconds, memory, later, minutes = told(
        r"in two parts: (\d+) steps of (\d+) packed rows, (\d+) s on an H100 with (\d+) GiB .*? "
        r"then (\d+) steps of 4 rows, (\d+) minutes"
    )
    assert f"{steps} steps of {rows} packed rows in {seconds} s on one H100" in log
    assert re.search(rf"a step, {memory} GiB\)", log)
    assert f"seed 1, {later} steps, {minutes} minutes on one CPU core" in page
    (asked,) = re.findall(r"SmolLM2's answers to (\d+) everyday questions", TEXT)
    assert f"{asked} questions: " in log


def test_smol_llava_beside_what_is_published():
    figures = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    found = {part.partition("\n")[0]: part.split("**On smol-llava**")[1]
             for part in figures.split("\n## ")[1:]}  # fmt: skip

    def numbers(figure, pattern):
        told = re.search(pattern, found[figure])
        assert told is not None, (figure, pattern)
        return told.groups()

    words, visual = numbers(
        "DualEdit, Figure 2", r"layer (\d+) for words and in layer (\d+) for vis"
    )
    (times,) = numbers("DualEdit, Figure 2", r"moves it (\S+) times")
    shallow, deep = numbers(
        "VisEdit, Figure 1", r"contributes (\S+) on average, .*? second (\S+) \("
    )
    more, top = numbers("DualEdit, Figure 1", r"gets (\S+) more .*? get (\S+) times the mean")
    peaks = numbers("DualEdit, Figure 1", r"layer (\d+) for words and (\d+) for visual")
    depth = r"([\d.]+) \[[^]]*\], n = 83 in \w+ layers \((\S+)\)"
    hits = re.findall(depth, found["VisEdit, Figure 7"])
    wide, narrow = hits[:3], [share for share, _ in hits[3:]]
    row = (
        f"most in layer {words} for words, in layer {visual} for visual tokens; both together "
        f"{times} times the sum |",
        f"{shallow} a module in the first half of the layers, {deep} in the second |",
        f"words get {more} more; the 3 most attended visual tokens {top} times the mean; "
        f"the peaks are in layers {peaks[0]} and {peaks[1]} |",
        f"in {wide[0][0]} (layers {wide[0][1]}), {wide[1][0]} ({wide[1][1]}) and {wide[2][0]} "
        f"({wide[2][1]}), chance 0.11; with noise of 0.1 instead of 3 std "
        f"{narrow[0]}, {narrow[1]} and {narrow[2]} |",
    )
    page = (CARDS / "smol-llava" / "README.md").read_text(encoding="utf-8")
    assert PUBLISHED in page and not [cell for cell in row if cell not in page]
    told_again = told(
        r"in `smol-llava` (\S+) a module in the first half and (\S+) in .*?; layer (\d+) and layer "
        r"(\d+), and (\S+) times .*?, in `smol-llava` in layers (\d+) and (\d+)\. .*? in (\d+) % "
        r"of the questions with the paper's noise, in (\d+) % with a thirtieth"
    )
    assert told_again[:7] == (shallow, deep, words, visual, times, *peaks)
    assert all(map(equal, told_again[7:], (100 * float(hits[i][0]) for i in (2, 5))))


def test_the_card_of_smol_llava_is_made_of_what_lies_beside_it(tmp_path):
    facts = json.loads((CARDS / "smol-llava" / "measured.json").read_text(encoding="utf-8"))
    write_card(tmp_path, facts)
    for name in ("README.md", "measured.json"):
        committed = CARDS / "smol-llava" / name
        assert (tmp_path / name).read_text() == committed.read_text(), name
