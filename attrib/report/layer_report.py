"""The layer report: which layers to edit, why, and how certain that is."""

import json
from collections.abc import Iterator
from pathlib import Path

from attrib.analyses.heatmaps import PUBLISHED_CODE, Perturbation
from attrib.files import sha256, write_text
from attrib.plots.selection import NAMES
from attrib.report.confidence import caveats, confidence_blocks, verdict
from attrib.report.evidence import evidence_blocks, score_figures
from attrib.report.heatmap_cards import heatmap_viewer
from attrib.report.layer_study import NO_HEATMAPS, NO_IMAGES, LayerStudy, name_of
from attrib.report.page import (
    MOST_ROWS,
    Block,
    Figures,
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
    accuracy,
    confidence,
    headline,
    low_accuracy,
    model_of,
    rationale,
)
from attrib.selection.accuracy import ACCURACY

LAYOUT = "attrib report 2"
DIGEST = 12  # digits of a file's digest in tables
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
        "accuracy": report.provenance.get(ACCURACY) or None,
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
        *([Block("text", known)] if (known := accuracy(report)) else []),
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
        Section("confidence", "Confidence", list(confidence_blocks(study))),
        Section("limits", "What this report does not show", [Block("list", list(caveats(study)))]),
        Section("samples", "Samples", list(_data(study))),
        Section("repeat", "Reproduce, and train an editor", list(_reproduce(study))),
    ]
    title = f"Which layers to edit in {model_of(report)}"
    badge = "; ".join(filter(None, [study.partial, low_accuracy(report)]))
    return Page(title, headline(report), lead, sections, badge)


def _why(study: LayerStudy) -> Iterator[Block]:
    yield from (Block("text", line) for line in rationale(study.report))
    yield Block("figures", Figures(score_figures(study), SCORES))
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
    for modality, tokens in NAMES.items():
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
