"""The evidence of the layer report: per question a summary, figures and their numbers."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from attrib import plots
from attrib.plots.selection import EVIDENCE
from attrib.report.intervention_summaries import (
    faithfulness_table,
    summarize_faithfulness,
    summarize_patching,
    summarize_sensitivity,
)
from attrib.report.layer_study import LayerStudy
from attrib.report.page import Block, Figure, Figures, Table, figure, means_table
from attrib.report.run_reader import RunRead
from attrib.report.summaries import summarize_attention, summarize_contributions
from attrib.results import Result

BOTH = ("text", "visual")
SIZE = (4.4, 3.3)


class _Part(NamedTuple):
    title: str
    runs: tuple[str, ...]
    figures: Mapping[str, tuple[str, ...]]  # keys of `EVIDENCE`, and the modalities to mark
    summarize: Callable[[Result], str]
    caption: str


PARTS = (
    _Part(
        "Which layers contribute to the answer?",
        ("contributions",),
        {"contributions": BOTH},
        lambda result: summarize_contributions(result, "the answer token"),
        "Contribution of each layer's attention and MLP to the answer's first token at the last "
        "prompt token (VisEdit, Eqs. 1-5). The rule onset selects the layer before the step up. "
        "Bands: 95 % bootstrap intervals of the mean over examples.",
    ),
    _Part(
        "In which layers does noise change the output?",
        ("sweep text", "sweep visual"),
        {"noise on text tokens": ("text",), "noise on visual tokens": ("visual",)},
        summarize_sensitivity,
        "KL divergence of the output distribution under Gaussian noise on the text tokens, or on "
        "the visual tokens, of one layer; mean over noise levels (DualEdit, Fig. 2). The rule "
        "sensitivity selects the highest layer. The last prompt token is excluded, since editors "
        "do not write there. Bands: 95 % bootstrap intervals of the mean over examples.",
    ),
    _Part(
        "Up to which layer can the answer be changed?",
        ("patching",),
        {"visual patching": ("visual",), "last patching": ("text",)},
        summarize_patching,
        "Share of the pairs whose answer follows another image after the states of that image's "
        "run were patched into one layer. The rule patching selects the layer at which the answer "
        "moves from the visual tokens to the last prompt token. Bands: 95 % Wilson intervals.",
    ),
    _Part(
        "What does the last prompt token attend to?",
        ("attention",),
        {"attention": BOTH},
        summarize_attention,
        "Share of the last prompt token's attention, mean over heads; the rest is on the "
        "begin-of-sequence token (DualEdit, Fig. 1). Attention has no vote: it shows what a layer "
        "reads, not how it uses it. Bands: 95 % bootstrap intervals of the mean over examples.",
    ),
)
POINTING = (
    "How often the highest patch of a map lies on the object that the question is about; the thin "
    "line is chance. Only the embedded scenes have this ground truth. The pointing game has no "
    "vote in the choice. Bands: 95 % Wilson intervals."
)


def evidence_blocks(study: LayerStudy) -> Iterator[Block]:
    """All available evidence."""
    available = set(plots.evidence_kinds(study.evidence))
    for part in PARTS:
        runs = [run for run in study.counted if run.name in part.runs]
        figures = {name: marked for name, marked in part.figures.items() if name in available}
        if runs and figures:
            yield Block("heading", part.title)
            yield Block("text", " ".join(part.summarize(run.result) for run in runs))
            drawn = [_figure(study, *one) for one in figures.items()]
            yield Block("figures", Figures(drawn, part.caption))
    for number, run in enumerate(run for run in study.runs if run.name == "faithfulness"):
        yield from _pointing_game(study, run, number)


def score_figures(study: LayerStudy) -> list[Figure]:
    """The rules' scores per modality."""
    return [
        figure(plots.layer_scores(study.report, modality), _scores(study, modality),
               f"scores-{modality}")
        for modality, choices in study.report.choices.items() if choices
    ]  # fmt: skip


def _scores(study: LayerStudy, modality: str) -> Table:
    """Scores of every rule per layer, and the share of draws of the chosen rule."""
    choices, rule = study.report.choices[modality], study.report.rule
    columns = [*choices, *([f"{rule}: share of draws"] if rule in choices else [])]
    rows = []
    for layer in range(study.report.num_layers):
        scores = [choice.scores[layer] for choice in choices.values()]
        cells = ["none" if score is None else f"{score:.3g}" for score in scores]
        cells += [f"{choices[rule].shares[layer]:.0%}"] if rule in choices else []
        rows.append((layer, cells))
    return Table(f"Scores, {modality} tokens", columns, rows, chosen=study.report.layers[modality])


def _figure(study: LayerStudy, name: str, marked: tuple[str, ...]) -> Figure:
    layers = {modality: study.report.layers[modality] for modality in marked}
    panel = EVIDENCE[name]
    labels = {str(one.rows["evidence"]): one.label for one in panel.curves}
    labels = {key: label for key, label in labels.items() if key in set(study.evidence["evidence"])}
    chosen = sorted({layer for some in study.report.layers.values() for layer in some})
    table = means_table(study.evidence, "evidence", labels, panel.title, chosen)
    drawn = plots.layer_evidence(study.evidence, name, layers)
    return figure(drawn, table, name.replace(" ", "-"))


def _pointing_game(study: LayerStudy, run: RunRead, number: int) -> Iterator[Block]:
    layers = study.report.layers["visual"]
    drawn = plots.faithfulness(run.result, "hit", plots.new_axes(*SIZE))
    drawn = plots.mark_layers(drawn, {"visual": layers}, drawn.get_title("left"))
    means = run.result.where(statistic="hit").shares(["layer", "method"])
    methods = {method: method for method in dict.fromkeys(run.result.frame["method"])}
    table = means_table(means, "method", methods, "Share of hits", layers)
    yield Block("heading", "Do the heatmaps point at the queried object?")
    if "all_layers" in run.tables:
        yield Block("text", summarize_faithfulness(run.result, run.tables["all_layers"]))
        yield Block("table", _methods(faithfulness_table(run.result, run.tables["all_layers"])))
    if run.name in study.other_data:
        data = run.result.provenance.get("data", {})
        yield Block("text", f"On other data: {data.get('name')} {data.get('split') or ''}.")
    yield Block("figures", Figures([figure(drawn, table, f"pointing{number}")], POINTING))


def _methods(frame: pd.DataFrame) -> Table:
    rows = []
    for row in frame.to_dict("records"):
        known = np.isfinite(row["hit"])
        hit = f"{row['hit']:.0%} [{row['low']:.0%}, {row['high']:.0%}]" if known else "none"
        best = f"{row['best layer']:.0f}" if known else "none"
        auc = f"{row['AUC']:.2f}" if known else "none"
        rows.append((row["method"], [best, hit, auc, f"{row['all layers']:.0%}"]))
    columns = ["best layer", "hits [95 % CI]", "AUC over patches", "hits, mean map of all layers"]
    return Table("Pointing game", columns, rows, "map")
