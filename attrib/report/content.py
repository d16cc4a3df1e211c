"""Everything the report on layers says, as sentences and tables: one content for all its forms."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from attrib.analyses.heatmaps import PUBLISHED_CODE, Perturbation
from attrib.environment import sha256
from attrib.report.caveats import caveats
from attrib.report.evidence import Table, parts_of, score_figures
from attrib.report.layer_study import LayerStudy
from attrib.report.rationale import why
from attrib.report.run_reader import MAIN
from attrib.report.selection_summary import summarize_selection
from attrib.report.summary import (
    grid_in_short,
    headline,
    name_of,
    partial_of,
    rules_table,
    sureness,
    what_it_means,
)

DIGEST = 12  # digits of a file's digest that are shown
WORDS = {"text": "words", "visual": "visual tokens"}
TITLES = {"both": "Words and visual tokens edited", "words alone": "Words alone edited",
          "visual tokens alone": "Visual tokens alone edited"}  # fmt: skip


def content_of(study: LayerStudy) -> dict[str, Any]:
    """What the templates show, by the names they use."""
    report = study.report
    choices = [choices[report.rule] for choices in report.choices.values()
               if report.rule in choices]  # fmt: skip
    return {
        "model": str(report.model.get("name") or "the model"),
        "partial": partial_of(study),
        "headline": headline(study),
        "sureness": sureness(study),
        "meaning": what_it_means(study),
        "why": list(why(study)),
        "selection": summarize_selection(report).splitlines(),
        "rule_said": f"{report.rule.capitalize()}: {report.meanings[report.rule]}.",
        "scores": score_figures(study),
        "meanings": report.meanings,
        "parts": list(parts_of(study)),
        "missing": {name_of(name): command for name, command in study.missing.items()},
        "rule_tables": [
            {**rules_table(report, modality), "title": f"What each rule picks for {word}"}
            for modality, word in WORDS.items() if report.choices[modality]
        ],
        "agreement": list(_agreement(study)),
        "judged": study.judged,
        "caveats": list(caveats(study)),
        "runs_table": _runs_table(study),
        "samples": _samples(study),
        "used": max(choice.examples for choice in choices) if choices else 0,
        "quarantined": study.quarantined,
        "commands": study.commands,
        "origin": _origin(study),
        "told_options": [(name_of(run.name), _given(run.options)) for run in study.runs],
        **_heat(study),
        **_grid(study),
    }  # fmt: skip


def _heat(study: LayerStudy) -> dict[str, Any]:
    report = study.report
    layers = [cells.layer for cells in study.pictures[0].cells] if study.pictures else []
    chosen = {modality: some for modality, some in report.layers.items() if some}
    first = [some[0] for m, some in chosen.items() if m == "visual"] or [
        some[0] for some in chosen.values()
    ]
    steps = [layers.index(layer) for layer in first if layer in layers]
    columns = [f"image {i + 1}" for i in range(len(study.pictures))]
    rows = [(layer, [picture.cells[step].said for picture in study.pictures])
            for step, layer in enumerate(layers)]  # fmt: skip
    table: Table | None = {"title": "Hottest cell", "columns": columns, "rows": rows,
                           "chosen": first}  # fmt: skip
    return {
        "pictures": study.pictures,
        "no_pictures": study.no_pictures,
        "heat_layers": layers,
        "heat_table": table if layers else None,
        "heat_said": _noise(study),
        "chosen": {layer for some in chosen.values() for layer in some},
        "shown_first": steps[0] if steps else 0,
    }


def chosen_for(study: LayerStudy, layer: int) -> str:
    """What a layer was chosen for, behind a comma; nothing where it was not."""
    words = [word for modality, word in WORDS.items() if layer in study.report.layers[modality]]
    return f", chosen for the {' and the '.join(words)}" if words else ""


def _noise(study: LayerStudy) -> str:
    there = [run for run in study.runs if run.name == "heatmap"]
    if not there:
        return ""
    run = max(there, key=lambda run: run.result.examples)
    preset = PUBLISHED_CODE if run.options.get("preset") == "published-code" else {}
    fields = ("noise", "unit", "radius", "draws", "site")
    given = {name: run.options[name] for name in fields if run.options.get(name) is not None}
    how = Perturbation(**{**preset, **given})
    size = f"{how.noise:g} standard deviations" if how.unit == "std" else f"size {how.noise:g}"
    return f"The disturbance is noise of {size}, drawn {how.draws} time(s)."


def _grid(study: LayerStudy) -> dict[str, Any]:
    if study.judged is None:
        return {"grid_said": "", "regret_tables": [], "told_table": None}
    tables = [
        {"title": f"{TITLES[kind]}: {study.judged.cells[kind]} choices of layers in the grid",
         "head": "pick", "chosen": [study.report.rule],
         "columns": ["words", "visual", "score", "regret", "best score", "best at", "seeds"],
         "rows": [_regret_row(row) for row in _sorted(table, study.report.rule)
                  if kind == "both" or row["regret"] == row["regret"]]}
        for kind, table in study.judged.tables.items()
    ]  # fmt: skip
    told = study.judged.told.dropna(subset=["correlation"])
    rows = [(f"{WORDS[r['modality']]}: {r['evidence']}",
             [f"{r['correlation']:.2f}", str(r["layers"])])
            for r in told.to_dict("records")]  # fmt: skip
    told_table = {"title": "Which evidence predicts the grid", "head": "evidence",
                  "columns": ["correlation", "layers compared"], "rows": rows}  # fmt: skip
    return {
        "grid_said": grid_in_short(study), "regret_tables": tables, "told_table": told_table,
    }  # fmt: skip


def _regret_row(row: dict[str, Any]) -> tuple[str, list[str]]:
    at = [_layer(row["text"]), _layer(row["visual"])]
    if row["regret"] != row["regret"]:
        return row["pick"], [*at, "not in the grid", "", "", "", ""]
    best = f"({_layer(row['best_text'])}, {_layer(row['best_visual'])})"
    spread = "" if row["seeds"] < 2 else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return row["pick"], [
        *at, f"{row['score']:.3g}", f"{row['regret']:.3g}{spread}", f"{row['best']:.3g}", best,
        str(int(row["seeds"])),
    ]  # fmt: skip


def _sorted(table: pd.DataFrame, rule: str) -> list[dict[str, Any]]:
    """The rows of a table of regrets: the rule that chose, then as they were."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return sorted(rows, key=lambda row: row["pick"] != rule)


def _layer(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else str(int(value))


def _agreement(study: LayerStudy) -> Iterator[str]:
    for modality, word in WORDS.items():
        found = study.report.agreement[modality]
        if found["correlation"] is not None:
            picks = ", ".join(f"{rule} {layer}" for rule, layer in found["picks"].items())
            yield (
                f"Agreement of the voting rules for the {word}: they pick {picks}; the mean rank "
                f"correlation of their scores over the layers is {found['correlation']:.2f} "
                "(1: the same order; 0: none)."
            )


def _runs_table(study: LayerStudy) -> Table:
    rows = []
    for run in study.runs:
        data = run.result.provenance.get("data", {})
        file = run.folder / f"{MAIN}.parquet"
        digest = sha256(file)[:DIGEST] if file.is_file() else "not finished"
        rows.append((name_of(run.name), [
            str(run.result.examples), f"{run.done} of {run.of}", str(len(run.quarantined)),
            f"{data.get('name', '')} {data.get('split') or ''}".strip(), str(run.folder), digest,
        ]))  # fmt: skip
    columns = ["samples", "rows done", "set aside", "data", "folder", "digest of its table"]
    return {"title": "What was run", "head": "analysis", "columns": columns, "rows": rows}


def _samples(study: LayerStudy) -> list[tuple[str, str]]:
    """Names and prompts of the examples that any counted table has."""
    names = {
        str(name): None for run in study.runs if run.name not in study.elsewhere
        for name in dict.fromkeys(run.result.frame["example"])
    }  # fmt: skip
    prompts = {name: sample.request.prompt for name, sample in study.samples.items()}
    return [(name, prompts.get(name, "")) for name in names]


def _origin(study: LayerStudy) -> dict[str, Any]:
    kept = ("model", "data", "versions", "seed", "resamples")
    provenance = study.report.provenance
    return {name: provenance[name] for name in kept if name in provenance}


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were said or have a default; what is not set is left out."""
    return {name: value for name, value in options.items() if value not in (None, False)}
