"""The chosen layers over the evidence for them: a column per modality, a row per analysis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from attrib.plots.curves import Series, draw_curve
from attrib.plots.drawing import BLUE, GREEN, GREY, INK, MUTED, STYLE, VERMILION, style

if TYPE_CHECKING:
    from attrib.selection import Choice, LayerReport

TITLES = {"text": "Words", "visual": "Visual tokens"}
RULES = {
    "onset": Series("onset", {}, BLUE, "o"),
    "sensitivity": Series("sensitivity", {}, VERMILION, "s", "--"),
    "patching": Series("patching", {}, GREEN, "^", "-."),
    "consensus": Series("consensus", {}, INK, "D"),
}
OTHER = Series("", {}, GREY, "v", ":")
HEADROOM = 0.22  # for the legend, as a share of the height
# Per row: what its axis is called, and its curves by modality.
CONTRIBUTIONS = [
    Series("attention", {"evidence": "contributions attn"}, BLUE, "o"),
    Series("MLP", {"evidence": "contributions mlp"}, VERMILION, "s", "--"),
]
PASSES = {
    "text": [
        Series("last token: other's answer", {"evidence": "follows last"}, VERMILION, "s"),
        Series("last token: own answer", {"evidence": "stays last"}, VERMILION, "s", "--", True),
    ],
    "visual": [
        Series("visual: other's answer", {"evidence": "follows visual"}, BLUE, "o"),
        Series("visual: own answer", {"evidence": "stays visual"}, BLUE, "o", "--", True),
    ],
}
NOISE = {
    "text": [Series("noise on words", {"evidence": "noise text"}, VERMILION, "s")],
    "visual": [Series("noise on visual tokens", {"evidence": "noise visual"}, BLUE, "o")],
}
ROWS: tuple[tuple[str, dict[str, list[Series]]], ...] = (
    ("contribution", dict.fromkeys(TITLES, CONTRIBUTIONS)),
    ("KL, nats, mean over σ", NOISE),  # noqa: RUF001
    ("share of the pairs", PASSES),
)


def selection(report: "LayerReport", evidence: pd.DataFrame) -> Axes:
    """The rules' scores on top, below them the curves they rest on; the choice is a vertical line.

    Args:
        report: what was selected.
        evidence: of `attrib.selection.evidence_table`, of the same tables.

    Returns:
        The first axes of the figure.
    """
    rows = [row for row in ROWS if _there(evidence, row[1])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.9 + 2.2 * len(rows)), layout="constrained")
    with style():
        axes: Any = figure.subplots(1 + len(rows), 2, sharex=True, squeeze=False)
        for column, modality in enumerate(TITLES):
            top = axes[0, column]
            draw_scores(top, report, modality)
            for ax, (name, curves) in zip(axes[1:, column], rows, strict=True):
                _draw_evidence(ax, evidence, curves[modality], name)
            for ax in axes[:, column]:
                _mark(ax, report.layers[modality])
            axes[-1, column].set_xlabel("layer")
    axes[0, 0].set_label(_described(report))
    return axes[0, 0]


def draw_scores(ax: Axes, report: "LayerReport", modality: str) -> None:
    """Each rule's scores over its highest, with a large marker at its pick."""
    choices = report.choices[modality]
    shown = [name for name in RULES if name in choices]
    shown += [report.rule] if report.rule in choices and report.rule not in shown else []
    for name in shown:
        look, choice = RULES.get(name, OTHER), choices[name]
        y = _relative(choice)
        width = 2.4 if name == report.rule else 1.4
        ax.plot(
            range(len(y)), y, look.line, color=look.color, marker=look.marker, markersize=4,
            linewidth=width, label=f"{name}: {choice.layer} ({choice.share:.0%})",
        )  # fmt: skip
        ax.plot(
            [choice.layer], [y[choice.layer]], look.marker, color=look.color, markersize=11,
            markerfacecolor="none", markeredgewidth=1.6, label="_pick",
        )  # fmt: skip
    layers = ", ".join(map(str, report.layers[modality])) or "none"
    ax.set_title(f"{TITLES[modality]}: layer {layers}")
    ax.set_ylabel("score, of the highest")
    ax.set_ylim(-0.05, 1.6)
    ax.set_yticks(np.linspace(0, 1, 6))
    _legend(ax, title="rule: its layer (share of the draws)")


def _draw_evidence(ax: Axes, evidence: pd.DataFrame, curves: Sequence[Series], name: str) -> None:
    for one in curves:
        rows = evidence[evidence["evidence"] == one.rows["evidence"]]
        if len(rows):
            draw_curve(ax, one, pd.DataFrame(rows))
    ax.set_ylabel(name)
    low, high = ax.get_ylim()
    ax.set_ylim(min(0.0, low), high + HEADROOM * (high - low))
    _legend(ax)


def _mark(ax: Axes, layers: Sequence[int]) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for i, layer in enumerate(layers):
        ax.axvline(layer, color=MUTED, linewidth=1.6 if i == 0 else 0.8, linestyle=(0, (4, 2)),
                   zorder=0)  # fmt: skip


def _legend(ax: Axes, title: str = "") -> None:
    if not ax.get_legend_handles_labels()[0]:
        return
    # Above the curves, where room was left for it.
    ax.legend(fontsize=8, title_fontsize=8, title=title, handlelength=2.6, loc="upper center",
              ncols=2, frameon=True, framealpha=0.9, edgecolor="none")  # fmt: skip


def _relative(choice: "Choice") -> np.ndarray:
    scores = np.array([np.nan if score is None else score for score in choice.scores], float)
    return np.clip(scores, 0, None) / max(float(np.nanmax(scores)), np.finfo(float).tiny)


def _there(evidence: pd.DataFrame, curves: dict[str, list[Series]]) -> bool:
    names = {one.rows["evidence"] for series in curves.values() for one in series}
    return bool(names & set(evidence["evidence"]))


def _described(report: "LayerReport") -> str:
    parts = [
        f"{TITLES[modality].lower()}: " + "; ".join(
            f"{rule} picks layer {choice.layer} in {choice.share:.0%} of the draws"
            for rule, choice in choices.items()
        )
        for modality, choices in report.choices.items()
        if choices
    ]  # fmt: skip
    return f"Line charts over layer, chosen by {report.rule}. {'. '.join(parts)}."
