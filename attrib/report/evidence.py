"""The evidence of the report on layers: per question a sentence, figures, and their numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from attrib import plots
from attrib.plots.selection import EVIDENCE, evidence_kinds
from attrib.report.heatmap_summary import summarize_faithfulness
from attrib.report.layer_study import LayerStudy
from attrib.report.page import interval
from attrib.report.summaries import (
    summarize_attention,
    summarize_contributions,
    summarize_patching,
    summarize_sensitivity,
)
from attrib.results import Result

Table = dict[str, Any]
BOTH = ("text", "visual")


class Figure(NamedTuple):
    """A figure and the numbers behind it."""

    svg: Markup
    table: Table


class Part(NamedTuple):
    """One piece of evidence: its question, what it says, how to read it."""

    title: str
    said: str
    caption: str
    figures: Sequence[Figure]


class _Kind(NamedTuple):
    title: str
    runs: tuple[str, ...]
    figures: Mapping[str, tuple[str, ...]]  # of `EVIDENCE`, with the modalities to mark
    say: Callable[[Result], str]
    caption: str


KINDS = (
    _Kind(
        "Where is the answer written?",
        ("contributions",),
        {"contributions": BOTH},
        lambda result: summarize_contributions(result, "the answer token"),
        "How much each layer's attention and MLP push the answer's first token at the last prompt "
        "token (VisEdit, Eqs. 1-5). The rule onset looks for the step up: an edit should stand "
        "just before it.",
    ),
    _Kind(
        "Where does a disturbance matter?",
        ("sweep text", "sweep visual"),
        {"noise on text tokens": ("text",), "noise on visual tokens": ("visual",)},
        summarize_sensitivity,
        "How far random noise on the words, or on the visual tokens, of one layer moves the output "
        "distribution; mean over the sizes of noise (DualEdit, Fig. 2). The rule sensitivity takes "
        "the highest layer. The last prompt token is spared: an editor does not write there.",
    ),
    _Kind(
        "Up to where can the answer be changed?",
        ("patching",),
        {"visual patching": ("visual",), "last patching": ("text",)},
        summarize_patching,
        "States of another image's run are put into one layer: whose answer comes out? Where the "
        "visual tokens stop to decide and the last prompt token begins to, the answer passes over. "
        "The rule patching takes the layer at which it does.",
    ),
    _Kind(
        "What is looked at?",
        ("attention",),
        {"attention": BOTH},
        summarize_attention,
        "Share of the last prompt token's attention, mean over heads; the rest goes to the "
        "begin-of-sequence token (DualEdit, Fig. 1). Attention has no vote: it says where a layer "
        "reads, not what it makes of it.",
    ),
)  # fmt: skip
POINTING = (
    "The hottest patch of a layer's map lies on the object that the question is about; the thin "
    "line is chance. Only the embedded scenes have this truth. It has no vote in the choice."
)


def parts_of(study: LayerStudy) -> Iterator[Part]:
    """All evidence that there is."""
    there = set(evidence_kinds(study.evidence))
    for kind in KINDS:
        runs = [r for r in study.runs if r.name in kind.runs and r.name not in study.elsewhere]
        named = {name: marked for name, marked in kind.figures.items() if name in there}
        if runs and named:
            said = " ".join(kind.say(run.result) for run in runs)
            figures = [_figure(study, name, marked) for name, marked in named.items()]
            yield Part(kind.title, said, kind.caption, figures)
    yield from _pointing(study)


def score_figures(study: LayerStudy) -> list[Figure]:
    """The rules' scores per modality."""
    figures = []
    for modality, choices in study.report.choices.items():
        if choices:
            drawn = plots.layer_scores(study.report, modality)
            svg = Markup(plots.svg(drawn, target="page", prefix=f"scores-{modality}-"))
            figures.append(Figure(svg, scores_table(study, modality)))
    return figures


def scores_table(study: LayerStudy, modality: str) -> Table:
    """Layers down, rules across: the scores, and in how many draws the chosen rule takes each."""
    choices = study.report.choices[modality]
    rule = study.report.rule
    columns = [*choices, *([f"{rule}: share of draws"] if rule in choices else [])]
    rows = []
    for layer in range(study.report.num_layers):
        cells = [_number(choice.scores[layer]) for choice in choices.values()]
        cells += [f"{choices[rule].shares[layer]:.0%}"] if rule in choices else []
        rows.append((layer, cells))
    chosen = study.report.layers[modality]
    title = f"Scores for {'words' if modality == 'text' else 'visual tokens'}"
    return {"title": title, "columns": columns, "rows": rows, "chosen": chosen}


def evidence_rows(study: LayerStudy, name: str) -> Table:
    """The numbers behind the curves `name`: layers down, curves across, mean and interval."""
    series, _, title = EVIDENCE[name]
    table = study.evidence
    columns, by_layer = [], {}
    for one in series:
        rows = pd.DataFrame(table[table["evidence"] == one.rows["evidence"]])
        if len(rows):
            columns.append(one.label)
            for row in rows.to_dict("records"):
                by_layer.setdefault(int(row["layer"]), {})[one.label] = interval(pd.Series(row))
    cells = [(layer, [by_layer[layer].get(c, "none") for c in columns]) for layer in
             sorted(by_layer)]  # fmt: skip
    return {"title": title, "columns": columns, "rows": cells, "chosen": _all_chosen(study)}


def _figure(study: LayerStudy, name: str, marked: Sequence[str]) -> Figure:
    layers = {modality: study.report.layers[modality] for modality in marked}
    drawn = plots.layer_evidence(study.evidence, name, layers)
    svg = Markup(plots.svg(drawn, target="page", prefix=f"{name.replace(' ', '-')}-"))
    return Figure(svg, evidence_rows(study, name))


def _pointing(study: LayerStudy) -> Iterator[Part]:
    for number, run in enumerate(run for run in study.runs if run.name == "faithfulness"):
        drawn = plots.faithfulness(run.result, "hit", plots.new_axes(4.4, 3.3))
        plots.mark_layers(drawn, {"visual": study.report.layers["visual"]}, drawn.get_title("left"))
        svg = Markup(plots.svg(drawn, target="page", prefix=f"pointing{number}-"))
        said = ""
        if "all_layers" in run.tables:
            said = summarize_faithfulness(run.result, run.tables["all_layers"])
        if run.name in study.elsewhere:
            data = run.result.provenance.get("data", {})
            said += f" On other data: {data.get('name')} {data.get('split') or ''}."
        figure = Figure(svg, _pointing_table(study, run.result))
        yield Part("Do the heatmaps point at what was asked about?", said, POINTING, [figure])


def _pointing_table(study: LayerStudy, result: Result) -> Table:
    means = result.where(statistic="hit").mean(["layer", "method"])
    columns = list(dict.fromkeys(map(str, result.frame["method"])))
    wide = {(row["layer"], row["method"]): interval(pd.Series(row))
            for row in means.to_dict("records")}  # fmt: skip
    layers = sorted({int(layer) for layer, _ in wide})
    rows = [(n, [wide.get((n, c), "none") for c in columns]) for n in layers]
    return {"title": "Share of the questions whose object is hit", "columns": columns,
            "rows": rows, "chosen": study.report.layers["visual"]}  # fmt: skip


def _all_chosen(study: LayerStudy) -> list[int]:
    return sorted({layer for layers in study.report.layers.values() for layer in layers})


def _number(value: float | None) -> str:
    return "none" if value is None or not np.isfinite(value) else f"{value:.3g}"
