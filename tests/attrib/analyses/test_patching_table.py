"""The patching study: which images are paired, what is said of them, and what is left behind."""

import sys

import numpy as np
import pandas as pd
import pytest
import tiny_models
from conftest import picture, tiny_vlm
from PIL import Image

from attrib import cli, plots
from attrib.analyses.patching import STATISTICS, measure_patching, patching_parts
from attrib.analyses.prompts import partner
from attrib.data import EditData, EditRequest, EditSample
from attrib.errors import AttribError
from attrib.pipeline.interventions import Patching, PatchingOptions
from attrib.report.intervention_summaries import summarize_patching
from attrib.results import Result, tidy
from attrib.runs.collect import collect

COLORS = ("red", "blue", "white", "black", "lime", "yellow")
WORDS = {"visual": "visual tokens", "last": "last prompt token"}


def sample(i, other=None, **others):
    """A question about one flat picture; by default the same is asked about another."""
    ask = f"What is {'very ' * (i % 3)}red?"
    other = Image.new("RGB", (60, 40), COLORS[(i + 4) % 6]) if other is None else other
    same = [EditRequest(picture(), "Is it?", "no"), EditRequest(other, ask, "yes")]
    own = Image.new("RGB", (60, 40), COLORS[i % 6])
    return EditSample(f"e{i}", EditRequest(own, ask, "x"), **{"hard_locality": same} | others)


def batch_of(vlm, samples):
    return vlm.encode([s.request.image for s in samples], [s.request.prompt for s in samples])


def planted(passes=6, layers=10, pairs=20, same=4):
    """The answer passes from the image to the last token in layer `passes`."""
    at = np.arange(layers)
    follows = {"visual": (at < passes).astype(float), "last": (at >= passes).astype(float)}
    values = np.full((pairs + same, layers, 2, len(STATISTICS)), np.nan)
    for k, span in enumerate(("visual", "last")):
        columns = (follows[span], 1 - follows[span], 0, follows[span], 0)
        for j, column in enumerate(columns):
            values[:pairs, :, k, j] = column
    values[pairs:, :, :, STATISTICS.index("same_answer")] = 1
    ids = [f"e{i}" for i in range(pairs + same)]
    frame = tidy(
        values, example=ids, layer=range(layers), span=("visual", "last"), statistic=STATISTICS
    )
    return Result("patching", frame, {"model": {"name": "planted"}})


@pytest.fixture(scope="module")
def tiny():
    return tiny_vlm("llava")


def test_the_table_holds_the_patching_of_each_pair(tiny):
    samples = [sample(i) for i in range(3)]
    batch = batch_of(tiny, samples)
    table = measure_patching(tiny, batch, samples, spans=("visual", "text"))["patching"]
    others = tiny.encode(
        [s.hard_locality[1].image for s in samples], [s.request.prompt for s in samples]
    )
    assert set(table["partner"]) == {"same_question"}
    for span in ("visual", "text"):
        parts = patching_parts(tiny, batch, others, span)
        for name in ("follows", "stays", "neither", "difference"):
            rows = table[(table["span"] == span) & (table["statistic"] == name)]
            expected = getattr(parts, name).flatten().numpy()
            assert np.allclose(rows["value"], expected, equal_nan=True)
        said = table.groupby("example", sort=False)[["own", "other"]].first()
        assert said["own"].tolist() == tiny.tokenizer.batch_decode(parts.own[:, None].tolist())


def test_a_pair_with_the_same_answer_is_marked_and_kept(tiny):
    own = Image.new("RGB", (60, 40), "red")
    samples = [sample(0), sample(6, other=own)]
    table = collect(tiny, samples, measure_patching).tables["patching"]
    same = table[table["statistic"] == "same_answer"].groupby("example")["value"].unique()
    assert same["e0"].tolist() == [0] and same["e6"].tolist() == [1]
    others = table[(table["statistic"] != "same_answer")].set_index("example")["value"]
    assert others["e6"].isna().all() and others["e0"].notna().all()


def test_the_other_image_is_that_of_the_same_question_or_an_unrelated_one():
    unrelated = [EditRequest(picture(seed=9), "Where?", "here")]
    name, image = partner(sample(1, visual_locality=unrelated))
    assert name == "same_question" and image.getpixel((0, 0)) == (255, 255, 0)
    name, image = partner(sample(1, hard_locality=[], visual_locality=unrelated))
    assert name == "unrelated" and image.tobytes() == picture(seed=9).tobytes()
    with pytest.raises(AttribError, match="needs another image"):
        partner(sample(1, hard_locality=[], visual_locality=[EditRequest(None, "Who?", "x")]))


def test_pairs_of_other_sizes_are_quarantined_or_fitted():
    vlm = tiny_vlm("qwen2_vl")
    samples = [sample(0), sample(1, other=picture(60, 200))]
    done = collect(vlm, samples, measure_patching)
    assert [s.id for s in done.used] == ["e0"]
    (row,) = done.quarantined
    assert "visual tokens" in row.reason and "same size" in row.reason

    def fitted(*given):
        return measure_patching(*given, fit=True)

    assert len(collect(vlm, samples, fitted).used) == 2


def test_samples_that_cannot_be_patched_are_refused(tiny):
    text = EditSample("t", EditRequest(None, "What?", "x"))
    with pytest.raises(AttribError, match="text only: patching needs an image"):
        measure_patching(tiny, batch_of(tiny, [text]), [text])


def test_the_summary_names_the_layer_where_the_answer_moves():
    said = summarize_patching(planted())
    assert said.startswith("planted: 20 pairs of images with different answers.")
    assert "4 pairs excluded (same answer to both images)." in said
    assert (
        "visual tokens flips 100 % of answers at layer 0 and fewer than half from layer 6 on"
        in said
    )
    assert (
        "last prompt token flips 0 % of answers at layer 0 and at least half from layer 6 on"
        in said
    )
    assert "From layer 6 on, patching the last token flips more answers" in said
    assert "(95 % CI: layers 6-6)" in said


def test_the_summary_of_one_span_and_of_pairs_without_information():
    result = planted()
    alone = summarize_patching(result.where(span="last"))
    assert "more answers" not in alone and "visual" not in alone
    none = result.frame.assign(value=result.frame["value"].where(result.frame["example"] > "e2"))
    only = Result("patching", pd.DataFrame(none[none["example"] == "e21"]), {})
    assert "no pair of images has two different answers" in summarize_patching(only)
    never = result.frame.assign(value=result.frame["value"].where(
        result.frame["statistic"] != "follows", 0.0))  # fmt: skip
    said = summarize_patching(Result("patching", never, {}))
    assert "flips 0 % of answers at every layer" in said and "never flips more" in said


def test_curves_are_the_shares_of_the_pairs():
    result = planted()
    ax = plots.patching(result)
    lines = {line.get_label(): line for line in ax.get_lines()}
    for span, name in WORDS.items():
        means = result.where(span=span, statistic="follows").mean(["layer"])
        assert np.array_equal(lines[f"{name}: other's answer"].get_ydata(), means["mean"])
    assert set(means["n"]) == {20}
    alone = plots.patching(result.where(span="visual"))
    labels = [line.get_label() for line in alone.get_lines()]
    assert labels == ["other's answer", "own answer", "a third answer"]
    assert "visual tokens" in alone.get_title(loc="left")


def test_the_difference_is_plotted_as_a_median():
    result = planted()
    frame = result.frame.copy()
    wild = (frame["example"] == "e3") & (frame["statistic"] == "difference")
    frame.loc[wild, "value"] = 1e6
    for shown in (result, Result("patching", frame, {})):
        ax = plots.patching_difference(shown)
        (line,) = [line for line in ax.get_lines() if line.get_label() == "visual tokens"]
        assert line.get_ydata().tolist() == [1.0] * 6 + [0.0] * 4
    one = plots.patching_difference(planted(pairs=1, same=0))
    assert "nan" not in plots.svg(one)
    none = plots.patching_difference(planted(pairs=0))
    assert "no values" in plots.describe(none)


def test_the_plan_counts_passes(tiny):
    analysis = Patching(PatchingOptions(span="last"))
    (line,) = analysis.plan(tiny, EditData("few", "", [sample(0), sample(1)]))
    assert line == "cost: at most 3.5 forward passes for each of 2 pairs"


@pytest.mark.usefixtures("unrendered")
def test_attrib_patching_writes_a_table_figures_and_a_summary(monkeypatch, capsys, tmp_path):
    model, processor = tiny_models.build("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{color}.png")
    photo = ["--image", tmp_path / "red.png", "--prompt", "The animal is a"]

    def run(*more):
        given = ["patching", "--model", tmp_path / "model", *more]
        monkeypatch.setattr(sys, "argv", ["attrib", *map(str, given)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    data = ["--limit", 3, "--out", tmp_path / "o"]
    code, out, err = run(*data)
    assert code == 0, err
    result = Result.load(tmp_path / "o" / "result.parquet")
    assert set(result.frame["span"]) == {"visual", "last"} and result.examples == 3
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert {"patching.png", "patching.svg", "patching-difference.png"} <= names
    last = result.where(span="last", statistic="follows", layer=3).frame["value"].dropna()
    assert (last == 1).all()
    code, out, err = run(*photo, "--other-image", tmp_path / "blue.png", "--span", "visual",
                         "--out", tmp_path / "p")  # fmt: skip
    assert code == 0 and ("1 pair of" in out or "same answer" in out), err
    assert run(*photo)[0] == 2 and run("--span", "picture")[0] == 2
    assert run("--other-image", tmp_path / "blue.png")[0] == 2
