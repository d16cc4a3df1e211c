"""How certain a selection of layers is: stability, agreement of the rules, regret, limits."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from attrib.plots.selection import NAMES
from attrib.report.layer_study import VOTING, LayerStudy, name_of
from attrib.report.page import Block, Table
from attrib.report.selection_summary import (
    confidence,
    model_of,
    summarize_regret,
    summarize_selection,
)
from attrib.selection import CONSENSUS_RULES

FEW = 50  # examples below which intervals are wide
TABLE = (
    "Share of draws: bootstrap samples in which the layer is the rule's best. 95 % of draws: range "
    "of the best layer. Weight: of the rule in the consensus."
)


def verdict(study: LayerStudy) -> str:
    """How certain the choice is, and its regret if a grid of editors was given."""
    sentence = "No editor was trained to check the choice."
    if study.evaluation is not None:
        sentence = summarize_regret(study.evaluation, study.report.rule)
    return f"{confidence(study.report)} {sentence}"


def caveats(study: LayerStudy) -> Iterator[str]:
    """The limits of the report, a sentence or two each."""
    report, evaluation = study.report, study.evaluation
    if evaluation is None:
        yield (
            "Whether an edit at these layers works. The evidence shows where the answer's "
            "information is and where noise changes it; only editors trained at several layers "
            "(attrib grid) show where editing works best."
        )
    else:
        seeds = [int(n) for t in evaluation.regret.values() for n in t["seeds"].dropna()]
        if seeds and min(seeds) < 2:
            yield (
                "How much of the regret is chance: the grid has one seed per cell, and the best of "
                "many noisy cells is partly best by chance."
            )
        table = evaluation.regret.get("both", next(iter(evaluation.regret.values())))
        if len(lacking := table.loc[table["regret"].isna(), "pick"]):
            yield f"The regret of picks whose cells the grid lacks: {', '.join(lacking)}."
    yield (
        "Whether the rules are right. Bootstrap intervals show how much the choice depends on the "
        "sample of examples, not whether the rule is a good one."
    )
    yield (
        f"Other data or models: all numbers are of {model_of(report)} on "
        f"{report.provenance.get('data', {}).get('name', 'this data')}."
    )
    fewest = min((run.result.examples for run in study.runs if run.name in VOTING), default=0)
    if fewest < FEW:
        yield f"Small differences: one of the analyses has only {fewest} examples."
    if evaluation is None or "both" not in evaluation.regret:
        yield "Edits of both layers at once: the layer of each modality is selected separately."
    yield "The last layer: nothing but the last prompt token is read after it, so it has no score."
    for line in report.left_out:
        yield f"A rule that could not be computed: {line}."
    for name in sorted(study.other_data):
        yield f"{name_of(name).capitalize()} of these samples: run on other data, and not counted."


def confidence_blocks(study: LayerStudy) -> Iterator[Block]:
    """Stability of the selection, the choice of every rule, and the regret on a grid."""
    report, evaluation = study.report, study.evaluation
    yield from (Block("text", line) for line in summarize_selection(report).splitlines())
    yield from (Block("table", _rules(study, m)) for m in NAMES if report.choices[m])
    yield Block("caption", TABLE)
    if evaluation is None:
        yield Block("text", "Without a grid of trained editors (attrib grid, then --grid "
                    "scores.csv), the regret of the choice is unknown.")  # fmt: skip
        return
    yield Block("heading", "Regret")
    text = summarize_regret(evaluation, report.rule)
    yield Block("text", f"{text} Regret: score of the best cell minus that of the pick. Grid: "
                f"{study.grid_source}.")  # fmt: skip
    for kind, table in evaluation.regret.items():
        known = table if kind == "both" else table.dropna(subset="regret")
        rows = sorted(map(_regret_row, known.to_dict("records")), key=lambda r: r[0] != report.rule)
        columns = ["text", "visual", "score", "regret", "best score", "best at", "seeds"]
        title = f"Edited: {kind}, {evaluation.cells[kind]} cells"
        yield Block("table", Table(title, columns, rows, "pick", [report.rule]))
    known = evaluation.correlations.dropna(subset="correlation").to_dict("records")
    rows = [(f"{r['modality']}: {r['evidence']}", [f"{r['correlation']:.2f}", str(r["layers"])])
            for r in known]  # fmt: skip
    title = "Rank correlation over layers between a rule's scores and those of editors"
    table = Table(title, ["correlation", "layers"], rows, "evidence")
    yield Block("details", ("Which evidence predicts the grid", [Block("table", table)]))


def _rules(study: LayerStudy, modality: str) -> Table:
    """The choice of every rule: first the one that chose, then the voters."""
    report, choices = study.report, study.report.choices[modality]
    weights = choices[report.rule].weights if report.rule in choices else {}
    rows = []
    for rule in dict.fromkeys([report.rule, *CONSENSUS_RULES, *choices]):
        if (choice := choices.get(rule)) is not None:
            ends = f"{choice.low}-{choice.high}" if choice.low < choice.high else f"{choice.low}"
            weight = f"{weights[rule]:.2f}" if rule in weights else "-"
            ranking = ", ".join(map(str, choice.ranking[1:4]))
            rows.append((rule, [str(choice.layer), f"{choice.share:.0%}", ends, ranking,
                                "chose" if rule == report.rule else weight,
                                str(choice.examples)]))  # fmt: skip
    columns = ["layer", "share of draws", "95 % of draws", "next best", "weight", "examples"]
    return Table(f"Choice of each rule, {NAMES[modality]}", columns, rows, "rule", [report.rule])


def _regret_row(row: dict[Any, Any]) -> tuple[str, list[str]]:
    at = [_layer(row["text"]), _layer(row["visual"])]
    if row["regret"] != row["regret"]:
        return row["pick"], [*at, "not in the grid", "", "", "", ""]
    best = f"({_layer(row['best_text'])}, {_layer(row['best_visual'])})"
    spread = "" if row["seeds"] < 2 else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return row["pick"], [
        *at, f"{row['score']:.3g}", f"{row['regret']:.3g}{spread}", f"{row['best']:.3g}", best,
        str(int(row["seeds"])),
    ]  # fmt: skip


def _layer(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else str(int(value))
