"""The layer report: which layers to edit, why, and how certain that is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from attrib.analyses.heatmaps import PUBLISHED_CODE, Perturbation
from attrib.environment import sha256
from attrib.files import write_text
from attrib.report.evidence import evidence_blocks, score_figures
from attrib.report.heatmap_cards import heatmap_viewer
from attrib.report.layer_study import NO_HEATMAPS, NO_IMAGES, VOTING, LayerStudy, name_of
from attrib.report.page import (
    MOST_ROWS,
    Block,
    Page,
    Section,
    Table,
    more_rows,
    provenance_table,
    quarantine_blocks,
    shown,
)
from attrib.report.render import finite, plain_sections, render_html, render_markdown
from attrib.report.run_reader import MAIN
from attrib.report.selection_summary import (
    agreement,
    confidence,
    headline,
    model_of,
    rationale,
    summarize_regret,
    summarize_selection,
)
from attrib.selection import CONSENSUS_RULES

LAYOUT = "attrib report 2"
DIGEST = 12  # digits of a file's digest in tables
FEW = 50  # examples below which intervals are wide
TOKENS = {"text": "text tokens", "visual": "visual tokens"}
SCORES = (
    "Score of each layer as a share of the rule's highest score. A large marker is the rule's best "
    "layer; in brackets, the share of bootstrap samples in which it is the best."
)
HEATMAPS = (
    "The brighter a cell, the more noise on it changes the layer's attention output at the last "
    "prompt token (VisEdit, Eq. 7). An edit of the visual tokens at a layer is first read by the "
    "next layer. Colours are scaled per map, from its lowest to its highest value; compare layers "
    "by these numbers."
)
TABLE = (
    "Share of draws: bootstrap samples in which the layer is the rule's best. 95 % of draws: range "
    "of the best layer. Weight: of the rule in the consensus."
)


def write_layer_report(study: LayerStudy, out: Path) -> list[Path]:
    """Write report.html, report.md, report.json and layers.json into a folder; their paths."""
    page = layer_page(study)
    return [
        write_text(out / "report.html", render_html(page)),
        write_text(out / "report.md", render_markdown(page)),
        write_text(out / "report.json", render_json(study, page)),
        study.report.save(out / "layers.json"),
    ]


def render_json(study: LayerStudy, page: Page) -> str:
    """The report as JSON: the choice, all texts and tables, and the curves; without pictures."""
    report, evaluation = study.report, study.evaluation
    plain = {
        "layout": LAYOUT,
        "layers": report.layers,
        "rule": report.rule,
        "num_layers": report.num_layers,
        "partial": study.partial,
        "headline": headline(report),
        "confidence": confidence(report),
        "caveats": list(caveats(study)),
        "commands": study.commands,
        "sections": plain_sections(page),
        "scores": report.scores().to_dict("records"),
        "curves": study.evidence.to_dict("records"),
        "regret": {kind: table.to_dict("records") for kind, table in evaluation.regret.items()}
        if evaluation
        else None,
        "samples": [{"name": name, "prompt": prompt} for name, prompt in _samples(study)],
        "quarantined": [vars(row) for row in study.quarantined],
        "provenance": report.provenance,
    }
    return json.dumps(finite(plain), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def layer_page(study: LayerStudy) -> Page:
    """The study as a page."""
    report = study.report
    data = report.provenance.get("data", {})
    source = f"{data.get('name', 'data')} {data.get('split') or ''}".strip()
    lead = [
        Block("text", verdict(study)),
        Block("caption", (
            f"The model has {report.num_layers} layers, counted from 0. An edit at a layer changes "
            "the layer's output at the text tokens or at the visual tokens. Selected by the rule "
            f"{report.rule}. Tuned on these {_used(study)} examples of {source}; validate on "
            "held-out data."
        )),
    ]  # fmt: skip
    sections = [
        Section("why", "Why these layers", list(_why(study))),
        Section("heatmaps", "Heatmaps of a few images", list(_heatmaps(study))),
        Section("confidence", "Confidence", list(_confidence(study))),
        Section("limits", "What this report does not show", [Block("list", list(caveats(study)))]),
        Section("samples", "Samples", list(_data(study))),
        Section("repeat", "Reproduce, and train an editor", list(_reproduce(study))),
    ]
    title = f"Which layers to edit in {model_of(report)}"
    return Page(title, headline(report), lead, sections, study.partial)


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


def _why(study: LayerStudy) -> Iterator[Block]:
    yield from (Block("text", line) for line in rationale(study.report))
    yield Block("figures", score_figures(study))
    yield Block("caption", SCORES)
    yield Block("details", ("Definitions of the rules", [Block("terms", study.report.meanings)]))
    yield from evidence_blocks(study)
    if study.missing:
        yield Block("heading", "Missing analyses")
        yield Block("list", [f"{name_of(n)}: run {c}" for n, c in study.missing.items()])


def _heatmaps(study: LayerStudy) -> Iterator[Block]:
    run = study.heatmap_run
    if run is None or not study.cards:
        yield Block("text", NO_HEATMAPS if run is None else NO_IMAGES)
        return
    layers = study.report.layers
    names: dict[int, str] = {}
    for modality, tokens in TOKENS.items():
        for layer in layers[modality]:
            start = f"{names[layer]} and the" if layer in names else ", chosen for the"
            names[layer] = f"{start} {tokens}"
    first = (layers["visual"] or layers["text"])[0]
    preset = PUBLISHED_CODE if run.options.get("preset") == "published-code" else {}
    fields = ("noise", "unit", "radius", "draws", "site")
    given = {name: run.options[name] for name in fields if run.options.get(name) is not None}
    how = Perturbation(**{**preset, **given})
    size = f"{how.noise:g} standard deviations" if how.unit == "std" else f"size {how.noise:g}"
    draws = f"{how.draws} draw{'s' * (how.draws != 1)}"
    yield Block("text", f"{HEATMAPS} Noise: {size}, {draws}.")
    yield Block("heatmaps", heatmap_viewer(study.cards, names, list(names), first))
    if "picture" in run.tables:
        yield Block("caption", "Values of the queries, distributed to the patches by the "
                    "Q-Former's cross-attention.")  # fmt: skip
    elif study.cards[0].box is None:
        yield Block("caption", "This model's visual tokens have no grid: each strip shows them in "
                    "reading order.")  # fmt: skip


def _confidence(study: LayerStudy) -> Iterator[Block]:
    report, evaluation = study.report, study.evaluation
    yield from (Block("text", line) for line in summarize_selection(report).splitlines())
    yield from (Block("table", _rules(study, m)) for m in TOKENS if report.choices[m])
    yield Block("caption", TABLE)
    yield from (Block("text", line) for line in agreement(report))
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
    return Table(f"Choice of each rule, {TOKENS[modality]}", columns, rows, "rule", [report.rule])


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


def _data(study: LayerStudy) -> Iterator[Block]:
    rows = []
    for run in study.runs:
        data = run.result.provenance.get("data", {})
        file = run.folder / f"{MAIN}.parquet"
        rows.append((name_of(run.name), [
            str(run.result.examples), f"{run.done} of {run.total}", str(len(run.quarantined)),
            f"{data.get('name', '')} {data.get('split') or ''}".strip(), str(run.folder),
            sha256(file)[:DIGEST] if file.is_file() else "not finished",
        ]))  # fmt: skip
    columns = ["samples", "rows done", "quarantined", "data", "folder", "digest of its table"]
    yield Block("table", Table("Runs", columns, rows, "analysis"))
    samples = _samples(study)
    cells = [(shown(name), [shown(prompt)]) for name, prompt in samples[:MOST_ROWS]]
    table = Block("table", Table("", ["prompt"], cells, "sample", numeric=False))
    yield Block("details", (f"The {len(samples)} samples", [table, *more_rows(len(samples))]))
    yield Block("heading", "Quarantined rows")
    yield from quarantine_blocks(study.quarantined, _used(study))


def _samples(study: LayerStudy) -> list[tuple[str, str]]:
    """Ids and prompts of the examples of all counted runs."""
    names = dict.fromkeys(str(n) for run in study.counted for n in run.result.frame["example"])
    prompts = {name: sample.request.prompt for name, sample in study.samples.items()}
    return [(name, prompts.get(name, "")) for name in names]


def _used(study: LayerStudy) -> int:
    rule, choices = study.report.rule, study.report.choices.values()
    return max((by_rule[rule].examples for by_rule in choices if rule in by_rule), default=0)


def _reproduce(study: LayerStudy) -> Iterator[Block]:
    provenance = study.report.provenance
    kept = ("model", "data", "versions", "seed", "resamples")
    yield Block("commands", study.commands)
    yield Block("heading", "Model, data, seeds, digests and versions")
    yield provenance_table({name: provenance[name] for name in kept if name in provenance})
    options = [(name_of(run.name), run.options) for run in study.runs if run.options]
    tables = [
        provenance_table({name: value for name, value in given.items() if value is not False}, run)
        for run, given in options
    ]
    yield Block("details", ("Options of each analysis", tables))
