"""The demo report: contributions, their control, attention, and examples with answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attrib import plots
from attrib.analyses.accuracy import right_answers
from attrib.analyses.contributions import measure_demo
from attrib.data import EditData, EditSample, Quarantined
from attrib.files import write_text
from attrib.model.vlm import VLM
from attrib.report.heatmap_cards import small_png
from attrib.report.page import (
    Block,
    Figure,
    Figures,
    Page,
    Section,
    figure,
    means_table,
    provenance_table,
    quarantine_blocks,
)
from attrib.report.render import render_html
from attrib.report.summaries import (
    contribution_peak,
    summarize_answers,
    summarize_attention,
    summarize_control,
    summarize_demo,
)
from attrib.results import Result
from attrib.runs.collect import collect
from attrib.runs.manifest import provenance_of

CARDS = 8
SIZE = (4.4, 3.1)  # inches, so that text is legible on a telephone
MODULES = {"attn": "attention", "mlp": "MLP"}
PER_TOKEN = {
    "text_mean": "text, mean",
    "visual_mean": "visual, mean",
    "visual_top3": "top-3 visual",
}
SHARES = {"text_sum": "all text", "visual_sum": "all visual", "bos": "BOS"}
CONTRIBUTIONS = (
    "Contribution of each layer's attention and MLP, at the last prompt token, to the first token "
    "of the answer: square root of probability times scaled logit, with the logit's sign (VisEdit, "
    "Eqs. 1-5; control as in Fig. 6). Bands: 95 % bootstrap intervals of the mean over examples. "
    "Both figures have the same scale."
)
ATTENTION = (
    "Attention of the last prompt token, mean over heads (DualEdit, Fig. 1). The begin-of-sequence "
    "token (BOS) receives the attention that no other token gets, so it is separate from text. The "
    "three most attended visual tokens are those of each layer. Attention shows what a layer "
    "reads, not how it uses it."
)
MADE_UP = (
    "Made-up words are names of shapes, colours and places that the embedded models were taught, "
    "so that a question does not depend on its last word alone."
)


@dataclass(frozen=True)
class Card:
    """One example with the model's answer."""

    image: bytes | None  # PNG
    prompt: str
    truth: str
    answer: str
    right: bool
    kind: str


@dataclass(frozen=True)
class Study:
    """The content of the demo report.

    Attributes:
        results: "contributions", "wrong_key", "attention" and "answers".
        cards: examples, the first of each kind first.
        quarantined: rows that could not be used.
        provenance: of the results.
        commands: that reproduce the report.
    """

    results: Mapping[str, Result]
    cards: Sequence[Card]
    quarantined: Sequence[Quarantined]
    provenance: Mapping[str, Any]
    commands: Sequence[str]


def study(
    vlm: VLM,
    data: EditData,
    *,
    batch_size: int = 16,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    commands: Sequence[str] = (),
) -> Study:
    """Measure a model on `data` in one forward pass per sample, and generate its answers.

    Args:
        vlm: the model.
        data: samples with images.
        batch_size: samples per pass.
        seed: of the bootstrap intervals.
        options: the user's options, for the provenance.
        commands: that reproduce the report.
    """
    truths = right_answers(data)
    measure = partial(measure_demo, norm="none", truth=lambda sample: truths.get(sample.id, ""))
    done = collect(vlm, data, measure, batch_size=batch_size, what="report")
    made = provenance_of(vlm, data, options or {}, seed, done)
    results = {name: Result(name, table, made) for name, table in done.tables.items()}
    answers = results["answers"].frame.set_index("example")
    cards = [_card(s, answers.loc[s.id]) for s in _one_of_each_kind(done.used)[:CARDS]]
    return Study(results, cards, [*data.quarantined, *done.quarantined], made, commands)


def write_page(study: Study, path: str | Path) -> Path:
    """Write the study to `path` as one HTML file; return the path."""
    return write_text(path, render_html(demo_page(study)))


def demo_page(study: Study) -> Page:
    """The study as a page."""
    right, wrong = study.results["contributions"], study.results["wrong_key"]
    attention, model = study.results["attention"], study.provenance["model"]
    data = study.provenance["data"]
    scenes = [Block("caption", MADE_UP)] if str(data["name"]).startswith("scenes") else []
    lead = (
        f"{right.examples} prompts of {data['name']} ({data['split']}); {model['layers']} decoder "
        f"layers, counted from 0. {summarize_answers(study.results['answers'])}"
    )
    sections = [
        Section("contributions", "Contribution of each layer to the answer", [
            Block("text", f"{contribution_peak(right)} {summarize_control(right, wrong)}".strip()),
            Block("figures", Figures(_contribution_figures(right, wrong), CONTRIBUTIONS)),
        ]),
        Section("attention", "Attention of the last prompt token", [
            Block("text", summarize_attention(attention)),
            Block("figures", Figures(_attention_figures(attention), ATTENTION)),
        ]),
        Section("examples", "Examples", [*scenes, Block("cards", study.cards)]),
        Section("rows", "Quarantined rows", quarantine_blocks(study.quarantined, right.examples)),
        Section("reproduce", "Reproduce", [
            Block("commands", {"Commands": study.commands}),
            Block("heading", "Model, data, options and versions"),
            provenance_table(study.provenance),
        ]),
    ]  # fmt: skip
    title = f"Where the answers of {model['name']} come from"
    return Page(title, summarize_demo(right, wrong), [Block("text", lead)], sections)


def _contribution_figures(right: Result, wrong: Result) -> list[Figure]:
    titles = ("Key: the model's own answer", "Control: an unrelated answer")
    drawn = [
        plots.contributions(result, plots.new_axes(*SIZE), title=title)
        for result, title in zip((right, wrong), titles, strict=True)
    ]
    plots.share_scale(*drawn)
    return [
        figure(ax, means_table(r.mean(["layer", "module"]), "module", MODULES, title), prefix)
        for ax, r, title, prefix in zip(
            drawn, (right, wrong), titles, ("right", "wrong"), strict=True
        )
    ]


def _attention_figures(result: Result) -> list[Figure]:
    means = result.mean(["layer", "statistic"])
    token = plots.attention(result, plots.new_axes(*SIZE), quantity="token")
    share = plots.attention(result, plots.new_axes(*SIZE), quantity="share")
    return [
        figure(token, means_table(means, "statistic", PER_TOKEN, "Attention per token"), "token"),
        figure(share, means_table(means, "statistic", SHARES, "Share of the attention"), "share"),
    ]


def _one_of_each_kind(samples: Sequence[EditSample]) -> list[EditSample]:
    """The samples in the order: the first of each kind, the second of each kind, ..."""
    seen: dict[str, int] = {}
    rank = []
    for sample in samples:
        kind = _kind(sample)
        seen[kind] = seen.get(kind, -1) + 1
        rank.append(seen[kind])
    return [samples[i] for i in sorted(range(len(samples)), key=rank.__getitem__)]


def _card(sample: EditSample, answer: Any) -> Card:
    images = sample.request.images
    png = small_png(images[0]) if images else None
    right = bool(answer["value"])
    return Card(png, sample.request.prompt, answer["truth"], answer["answer"], right, _kind(sample))


def _kind(sample: EditSample) -> str:
    return str(sample.meta.get("kind", ""))
