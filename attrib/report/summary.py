"""What the report on layers says about the choice, in sentences that are computed."""

from collections.abc import Mapping

from attrib.report.layer_study import EXPECTED, LayerStudy
from attrib.report.selection_summary import UNCLEAR, WHERE
from attrib.selection import CONSENSUS_RULES, LayerReport

SURE = 0.9  # of the draws
NEAR = 1  # layers apart at most, for rules that agree
NAMES = {
    "sweep text": "noise on words",
    "sweep visual": "noise on visual tokens",
    "heatmap": "heatmaps",
    "faithfulness": "heatmaps against the truth",
}


def headline(study: LayerStudy) -> str:
    """The chosen layers, in one sentence."""
    report = study.report
    there = {modality: layers for modality, layers in report.layers.items() if layers}
    places = [f"{WHERE[modality]} at layer {_listed(layers)}" for modality, layers in there.items()]
    sentence = f"Edit {model_name(report)}: {' and '.join(places)}."
    first, *others = there.values()
    if others and all(layers == first for layers in others):
        both = " and ".join(WHERE[modality] for modality in there)
        sentence = f"Edit {model_name(report)} at layer {_listed(first)}, both {both}."
    none = [WHERE[modality] for modality, layers in report.layers.items() if not layers]
    return f"{sentence} No layer can be chosen for {' or '.join(none)}." if none else sentence


def what_it_means(study: LayerStudy) -> str:
    """What a layer is here, and what the choice rests on."""
    report = study.report
    data = report.provenance.get("data", {})
    examples = min(
        (choices[report.rule].examples for choices in report.choices.values()
         if report.rule in choices),
        default=0,
    )  # fmt: skip
    source = f"{data.get('name', 'data')} {data.get('split') or ''}".strip()
    return (
        f"The model has {report.num_layers} layers, counted from 0; an edit at a layer writes what "
        "that layer puts out, at the prompt's words or at the image's visual tokens. Chosen by the "
        f"rule {report.rule} from {examples} examples of {source}."
    )


def partial_of(study: LayerStudy) -> str:
    """That it is partial, with n of N; nothing where nothing is missing."""
    parts = []
    if study.missing:
        there = len(EXPECTED) - len(study.missing)
        parts.append(f"{there} of {len(EXPECTED)} analyses")
    parts += [f"{run.done} of {run.of} examples of {name_of(run.name)}" for run in study.unfinished]
    return f"partial: {'; '.join(parts)}" if parts else ""


def sureness(study: LayerStudy) -> str:
    """In a sentence or two how much to trust the choice: draws, rules and, with a grid, regret."""
    report = study.report
    chosen = {m: c[report.rule] for m, c in report.choices.items() if report.rule in c}
    sentences = []
    least = min((choice.share for choice in chosen.values()), default=0.0)
    if any(choice.examples < 2 for choice in chosen.values()):
        sentences.append("This is one example: nothing is known about others.")
    elif least >= SURE:
        sentences.append(
            f"Other examples would hardly change it: {least:.0%} of the bootstrap draws choose the "
            "same layers."
        )
    elif least >= UNCLEAR:
        sentences.append(f"Other examples might change it: {least:.0%} of the draws agree.")
    else:
        sentences.append(f"It is no clear choice: only {least:.0%} of the draws agree.")
    sentences.append(_rules_agree(report))
    if study.judged is not None:
        sentences.append(grid_in_short(study))
    else:
        sentences.append("No editor was trained to check it.")
    return " ".join(sentence for sentence in sentences if sentence)


def _rules_agree(report: LayerReport) -> str:
    apart = {
        m: a["spread"] for m, a in report.agreement.items() if a.get("spread") is not None
        and len(a["picks"]) > 1
    }  # fmt: skip
    if not apart:
        return "Only one rule could be computed, so nothing checks it."
    if max(apart.values()) <= NEAR:
        return "The rules, each alone, agree."
    said = " and ".join(f"up to {gap} for {WHERE[m]}" for m, gap in apart.items() if gap > NEAR)
    return f"But what the rules pick, each alone, lies layers apart: {said}."


def grid_in_short(study: LayerStudy) -> str:
    """The regret of the rule that chose, and that of the fixed choices."""
    assert study.judged is not None
    rule = study.report.rule
    parts = []
    kinds = study.judged.tables
    for kind, table in ({"both": kinds["both"]} if "both" in kinds else kinds).items():
        of = f"the {study.judged.cells[kind]} that the grid has"
        rows = {row["pick"]: row for row in table.to_dict("records")}
        own = rows.get(rule)
        if own is None or own["regret"] != own["regret"]:
            parts.append(f"The grid has no editor trained at these layers ({kind}).")
            continue
        more = f" ({kind})" if kind != "both" else ""
        parts.append(
            f"Editors trained at these layers score {own['score']:.3g}{more}, "
            f"{own['regret']:.3g} less than the best of {of}."
            if own["regret"] > 0
            else f"Editors trained at these layers score best of {of}{more}: {own['score']:.3g}."
        )
    return " ".join(parts)


def rules_table(report: LayerReport, modality: str) -> dict:
    """What each rule says: a row per rule, the one that chose first, then the voters."""
    choices = report.choices[modality]
    weights: Mapping[str, float] = choices[report.rule].weights if report.rule in choices else {}
    order = [report.rule, *CONSENSUS_RULES, *choices]
    rows = []
    for rule in dict.fromkeys(name for name in order if name in choices):
        choice = choices[rule]
        ends = f"{choice.low} to {choice.high}" if choice.low < choice.high else f"{choice.low}"
        has = "chose" if rule == report.rule else f"{weights[rule]:.2f}" if rule in weights else "-"
        ranking = ", ".join(map(str, choice.ranking[1:4]))
        rows.append((rule, [str(choice.layer), f"{choice.share:.0%}", ends, ranking, has,
                            str(choice.examples)]))  # fmt: skip
    columns = ["layer", "share of draws", "95% of draws", "next best", "weight", "examples"]
    return {"head": "rule", "columns": columns, "rows": rows, "chosen": [report.rule]}


def name_of(run: str) -> str:
    """A run in plain words."""
    return NAMES.get(run, run)


def _listed(layers: list[int]) -> str:
    first, *others = map(str, layers)
    return f"{first} (then {', '.join(others)})" if others else first


def model_name(report: LayerReport) -> str:
    """The model, as it was asked for."""
    return str(report.model.get("name") or "the model")
