"""The chosen layers over the rules' scores and over the evidence for them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attrib.plots.curves import Series, draw_series, finish
from attrib.plots.drawing import (
    AXES,
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    VERMILION,
    describe,
    new_axes,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from attrib.selection import Choice, LayerReport

NAMES = {"text": "text tokens", "visual": "visual tokens"}
DASHES = {"text": (0, (4, 2)), "visual": (0, (1.5, 1.5))}
PANEL = (4.4, 3.3)
RULES = {
    "onset": Series("onset", {}, BLUE, "o"),
    "sensitivity": Series("sensitivity", {}, VERMILION, "s", "--"),
    "patching": Series("patching", {}, GREEN, "^", "-."),
    "consensus": Series("consensus", {}, INK, "D"),
}
OTHER_RULE = Series("", {}, GREY, "v", ":")


class Panel(NamedTuple):
    """The curves of one kind of evidence, the label of their axis and the title."""

    curves: tuple[Series, ...]
    unit: str
    title: str


def _curve(label: str, name: str, color: str, marker: str, line: str = "-", **look: Any) -> Series:
    return Series(label, {"evidence": name}, color, marker, line, **look)


def _patching(title: str, span: str, color: str, marker: str) -> Panel:
    follows = _curve("other image's answer", f"follows {span}", color, marker)
    stays = _curve("own answer", f"stays {span}", color, marker, "--", hollow=True)
    return Panel((follows, stays), "share of the pairs", title)


EVIDENCE: dict[str, Panel] = {
    "contributions": Panel(
        (
            _curve("attention", "contributions attn", BLUE, "o"),
            _curve("MLP", "contributions mlp", VERMILION, "s", "--"),
        ),
        "contribution",
        "Contribution to the answer token",
    ),
    "noise on text tokens": Panel(
        (_curve("noise on text tokens", "noise text", VERMILION, "s", "--"),),
        "KL divergence, nats",
        "Sensitivity to noise on text tokens",
    ),
    "noise on visual tokens": Panel(
        (_curve("noise on visual tokens", "noise visual", BLUE, "o"),),
        "KL divergence, nats",
        "Sensitivity to noise on visual tokens",
    ),
    "visual patching": _patching("Patching the visual tokens", "visual", BLUE, "o"),
    "last patching": _patching("Patching the last prompt token", "last", VERMILION, "s"),
    "attention": Panel(
        (
            _curve("to text tokens", "attention text", VERMILION, "s", "--"),
            _curve("to visual tokens", "attention visual", BLUE, "o"),
        ),
        "share of the attention",
        "Attention of the last prompt token",
    ),
}
OVERVIEW = (
    {"text": "contributions", "visual": "contributions"},
    {"text": "noise on text tokens", "visual": "noise on visual tokens"},
    {"text": "last patching", "visual": "visual patching"},
)


def selection(report: "LayerReport", evidence: pd.DataFrame) -> Axes:
    """The rules' scores on top, below them the evidence; a column per modality.

    Args:
        report: the selected layers.
        evidence: from `attrib.selection.evidence_table`, of the same results.

    Returns:
        The first axes of the figure.
    """
    available = set(evidence_kinds(evidence))
    rows = [row for row in OVERVIEW if available & set(row.values())]
    with style():
        figure = new_figure(2 * PANEL[0] + 0.8, PANEL[1] * (1 + len(rows)))
        axes: Any = figure.subplots(1 + len(rows), 2, squeeze=False, subplot_kw=AXES)
        for column, modality in enumerate(NAMES):
            layer_scores(report, modality, axes[0, column])
            for ax, row in zip(axes[1:, column], rows, strict=True):
                layers = {modality: report.layers[modality]}
                layer_evidence(evidence, row[modality], layers, ax)
    axes[0, 0].set_label(_description(report))
    return axes[0, 0]


def layer_scores(report: "LayerReport", modality: str, ax: Axes | None = None) -> Axes:
    """Each rule's scores as a share of its highest; a large marker at its best layer."""
    choices = report.choices[modality]
    names = [name for name in RULES if name in choices]
    names += [report.rule] if report.rule in choices and report.rule not in names else []
    with style():
        ax = new_axes(*PANEL) if ax is None else ax
        for name in names:
            look, choice = RULES.get(name, OTHER_RULE), choices[name]
            y = _relative(choice)
            ax.plot(
                range(len(y)), y, look.line, color=look.color, marker=look.marker, markersize=4,
                linewidth=2.4 if name == report.rule else 1.4,
                label=f"{name}: {choice.layer} ({100 * choice.share:.0f} %)",
            )  # fmt: skip
            ax.plot(
                [choice.layer], [y[choice.layer]], look.marker, color=look.color, markersize=11,
                markerfacecolor="none", markeredgewidth=1.6, label="_pick",
            )  # fmt: skip
        ax.set_ylabel("score / highest score")
        ax.set_ylim(-0.05, 1.08)
    title = f"Rule scores, {NAMES[modality]}"
    return mark_layers(ax, {modality: report.layers[modality]}, title)


def layer_evidence(
    evidence: pd.DataFrame,
    name: str,
    layers: Mapping[str, Sequence[int]],
    ax: Axes | None = None,
) -> Axes:
    """The curves of one kind of evidence; vertical lines are the chosen layers.

    Args:
        evidence: from `attrib.selection.evidence_table`.
        name: a key of `EVIDENCE`.
        layers: the chosen layers of the modalities that this evidence is about.
        ax: where to draw.
    """
    panel = EVIDENCE[name]
    ax = draw_series(evidence, panel.curves, ax, panel.title, size=PANEL)
    ax.set_ylabel(panel.unit)
    if name == "contributions":
        ax.axhline(0, color=MUTED, linewidth=0.8, label="_zero")
    else:
        ax.set_ylim(bottom=0)
    return mark_layers(ax, layers, panel.title)


def mark_layers(ax: Axes, layers: Mapping[str, Sequence[int]], title: str) -> Axes:
    """Mark the chosen layers by vertical lines, in the legend and in the text alternative."""
    description = describe(ax)
    chosen = {modality: list(some) for modality, some in layers.items() if some}
    lines = {NAMES[modality]: (DASHES[modality], some) for modality, some in chosen.items()}
    if len(chosen) > 1 and chosen["text"] == chosen["visual"]:
        lines = {"both": lines[NAMES["text"]]}
    with style():
        for name, (dashes, some) in lines.items():
            for i, layer in enumerate(some):
                label = "_more" if i else f"chosen, {name}: {layer}"
                width = 0.8 if i else 1.6
                ax.axvline(
                    layer, color=INK, linewidth=width, linestyle=dashes, zorder=0.5, label=label
                )
        finish(ax, title, 2)
    words = "; ".join(
        f"layer {', '.join(map(str, some))} is chosen for {NAMES[m]}" for m, some in chosen.items()
    )
    ax.set_label(f"{description} {words.capitalize()}." if words else description)
    return ax


def evidence_kinds(evidence: pd.DataFrame) -> list[str]:
    """The keys of `EVIDENCE` of which the table has a curve."""
    names = set(evidence["evidence"])
    return [
        kind for kind, panel in EVIDENCE.items()
        if any(one.rows["evidence"] in names for one in panel.curves)
    ]  # fmt: skip


def _relative(choice: "Choice") -> np.ndarray:
    scores = np.array([np.nan if score is None else score for score in choice.scores], float)
    return np.clip(scores, 0, None) / max(float(np.nanmax(scores)), np.finfo(float).tiny)


def _description(report: "LayerReport") -> str:
    parts = [
        f"{NAMES[modality]}: " + "; ".join(
            f"{rule} picks layer {choice.layer} in {100 * choice.share:.0f} % of bootstrap samples"
            for rule, choice in choices.items()
        )
        for modality, choices in report.choices.items()
        if choices
    ]  # fmt: skip
    return f"Line charts over layers, chosen by {report.rule}. {'. '.join(parts)}."
