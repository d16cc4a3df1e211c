"""Precision and exploration on the pages: every number is that of a committed file, rounded."""

import csv
import json

from claimed import RESULTS, ROOT, equal, rows, shown

FILES = ROOT / "benchmarks" / "results"
PRECISION, EXPLORE = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("precision", "explore")
)


def of(name):
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def test_half_precision():
    """Shares are means over models; correlation and deviations are those of the worst model."""
    with (FILES / "precision.csv").open(encoding="utf-8", newline="") as file:
        every = list(csv.DictReader(file))

    def values(analysis, dtype, column):
        return [float(r[column]) for r in every if (r["analysis"], r["dtype"]) == (analysis, dtype)]

    table = shown(PRECISION, "analysis | rank correlation")
    assert {label for label, *_ in table} == {row["analysis"] for row in every}
    for label, correlation, *cells in table:
        half = {name: values(label, "bfloat16", name) for name in every[0]
                if name not in ("model", "analysis", "dtype")}  # fmt: skip
        assert len(half["samples"]) == 3
        assert equal(correlation, min(half["rank_correlation_mean"])), label
        shares = (sum(half[name]) / 3 for name in ("same_top_layer", "clear_margin"))
        kinds = ("float16", "bfloat16", "bfloat16 alone")
        worst = (max(values(label, kind, "relative_deviation_median")) for kind in kinds)
        for cell, known in zip(cells, (*shares, *worst), strict=True):
            assert equal(cell.removesuffix(" %"), 100 * known), (label, cell)


def test_what_exploring_an_answer_costs():
    (row,) = (row for row in of("explore-cpu") if row["tokens"] == 4)
    text = " ".join(EXPLORE.split())
    told = text.split("The whole costs ")[1].split()
    assert (
        equal(told[0], row["ratio"]) and " ".join(told[1:7]) == "generations of an answer of four"
    )
    assert equal(text.split("its page has ")[1].split()[0], row["page MB"])


def test_the_lens_of_visual_tokens():
    shares = [100 * row["any layer"] for row in of("visual-lens")]
    patches = {row["patches"] for row in of("visual-lens")}
    text = " ".join(EXPLORE.split())
    (first, five), (control, control_five) = (
        [f"{share:.0f}" for share in some] for some in (shares[:2], shares[2:])
    )
    assert (
        f"{first} % of {patches.pop()} occupied patches of 60 scenes (among the likeliest five: "
        f"{five} %), less than for words of another scene's objects ({control} %, {control_five} %)"
    ) in text


def test_the_pointing_game():
    found = {(r["model"], r["method"]): r for r in rows("pointing/pointing.csv")}
    methods = ("heatmap", "heatmap, noise 0.1", "attention", "gradient")
    for model, *cells in shown(RESULTS, "model | heatmap, 3 std (paper)"):
        for method, cell in zip(methods, cells, strict=True):
            known = found[model, method]
            assert equal(cell.removesuffix(" %"), 100 * float(known["hit"])), (model, method)
            assert f"({known['n']} of the" in RESULTS
