"""One piece of evidence for the chosen layers, small enough for a page: curves, and the choice."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attrib.plots.curves import Series, draw_curve, finish
from attrib.plots.drawing import BLUE, GREEN, INK, MUTED, VERMILION, describe, new_axes, style
from attrib.plots.selection import draw_scores

if TYPE_CHECKING:
    from attrib.selection import LayerReport

NAMES = {"text": "words", "visual": "visual tokens"}
DASHES = {"text": (0, (4, 2)), "visual": (0, (1.5, 1.5))}
SIZE = (4.4, 3.3)
# By name: the curves, by the evidence they show; what the vertical axis is; the title.
CURVES: dict[str, tuple[tuple[Series, ...], str, str]] = {
    "contributions": (
        (
            Series("attention", {"evidence": "contributions attn"}, BLUE, "o"),
            Series("MLP", {"evidence": "contributions mlp"}, VERMILION, "s", "--"),
        ),
        "contribution",
        "What each layer adds to the answer",
    ),
    "noise on words": (
        (Series("noise on words", {"evidence": "noise text"}, VERMILION, "s", "--"),),
        "KL divergence, nats",
        "How far noise on the words moves the output",
    ),
    "noise on visual tokens": (
        (Series("noise on visual tokens", {"evidence": "noise visual"}, BLUE, "o"),),
        "KL divergence, nats",
        "How far noise on the visual tokens moves it",
    ),
    "visual patching": (
        (
            Series("other image's answer", {"evidence": "follows visual"}, BLUE, "o"),
            Series("own answer", {"evidence": "stays visual"}, BLUE, "o", "--", hollow=True),
        ),
        "share of the pairs",
        "Visual tokens of another image put in",
    ),
    "last patching": (
        (
            Series("other image's answer", {"evidence": "follows last"}, VERMILION, "s"),
            Series("own answer", {"evidence": "stays last"}, VERMILION, "s", "--", hollow=True),
        ),
        "share of the pairs",
        "Last prompt token of another image put in",
    ),
    "attention": (
        (
            Series("to words", {"evidence": "attention text"}, VERMILION, "s", "--"),
            Series("to visual tokens", {"evidence": "attention visual"}, BLUE, "o"),
        ),
        "share of the attention",
        "What the last prompt token attends to",
    ),
    "pointing": (
        (Series("heatmap", {"evidence": "pointing visual"}, GREEN, "^", "-."),),
        "share of the questions",
        "Heatmaps that point at the object asked about",
    ),
}


def layer_evidence(
    evidence: pd.DataFrame,
    name: str,
    layers: Mapping[str, Sequence[int]],
    ax: Axes | None = None,
) -> Axes:
    """The curves of one kind of evidence with their intervals; the chosen layers are lines.

    Args:
        evidence: of `attrib.selection.evidence_table`.
        name: one of `CURVES`.
        layers: chosen, by modality; leave out those that this evidence says nothing about.
        ax: where to draw.
    """
    series, unit, title = CURVES[name]
    with style():
        ax = new_axes(*SIZE) if ax is None else ax
        for one in series:
            rows = evidence[evidence["evidence"] == one.rows["evidence"]]
            if len(rows):
                draw_curve(ax, one, pd.DataFrame(rows))
        ax.set_ylabel(unit)
        if name != "contributions":
            ax.set_ylim(bottom=0)
        else:
            ax.axhline(0, color=MUTED, linewidth=0.8, label="_zero")
    return mark_layers(ax, layers, title)


def layer_scores(report: "LayerReport", modality: str, ax: Axes | None = None) -> Axes:
    """Each rule's scores for a modality, of its highest; a large marker at its best layer."""
    with style():
        ax = new_axes(*SIZE) if ax is None else ax
        draw_scores(ax, report, modality)
        ax.set_ylim(-0.05, 1.08)
    title = f"The rules' scores, {NAMES[modality]}"
    return mark_layers(ax, {modality: report.layers[modality]}, title)


def mark_layers(ax: Axes, layers: Mapping[str, Sequence[int]], title: str) -> Axes:
    """Mark the chosen layers in finished curves: lines, a legend below, and words."""
    with style():
        finish(ax, title, 2)
        said = describe(ax)
        for name, (modality, some) in _once(layers).items():
            for i, layer in enumerate(some):
                ax.axvline(layer, color=INK, linewidth=1.6 if i == 0 else 0.8, zorder=0.5,
                           linestyle=DASHES[modality],
                           label=f"chosen for {name}: {layer}" if i == 0 else "_more")  # fmt: skip
        finish(ax, title, 2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    chosen = "; ".join(
        f"layer {', '.join(map(str, some))} is chosen for {NAMES[modality]}"
        for modality, some in layers.items() if some
    )  # fmt: skip
    ax.set_label(f"{said} {chosen.capitalize()}." if chosen else said)
    return ax


def _once(layers: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, Sequence[int]]]:
    """By the name in the legend, a modality and its layers; one line where all are the same."""
    there = {modality: list(some) for modality, some in layers.items() if some}
    first = next(iter(there), "")
    if len(there) > 1 and all(some == there[first] for some in there.values()):
        return {"both": (first, there[first])}
    return {NAMES[modality]: (modality, some) for modality, some in there.items()}


def kinds(evidence: pd.DataFrame) -> list[str]:
    """The names of `CURVES` of which a table holds something."""
    there = set(np.unique(np.asarray(evidence["evidence"], str)))
    return [
        name for name, (series, _, _) in CURVES.items()
        if any(one.rows["evidence"] in there for one in series)
    ]  # fmt: skip
