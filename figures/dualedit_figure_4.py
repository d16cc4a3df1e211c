"""DualEdit, Figure 4: similarity of edits to other inputs, by the states that are compared."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.estimates import Estimate, all_hold, draw_estimates
from figures.figure import Figure, Measured, Verdict
from figures.gate_scores import COVERED, LEARNED, measure_gates
from figures.image_panels import add_heading
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "dualedit_figure_4"
GATES = {
    "visual_mean": "mean of the visual tokens",
    "text_mean": "mean of the text tokens",
    "prompt_last": "last prompt token",
    "target_last": "last target token (leaks)",
    LEARNED: "learned gate",
}
ROWS = {
    "text_generality": "other words",
    "visual_generality": "other picture",
    "text_locality": "unrelated text",
    "visual_locality": "unrelated image",
    "": "near neighbours",
}
BINS, RIDGE = 40, 0.85  # number of bins; height of the highest bar, with rows 1 apart
LIMIT = 15.0  # larger log-odds are drawn at the edge


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a panel per gate with a histogram per kind of input, and a panel of AUCs."""
    from attrib.plots.drawing import new_figure

    drawing = new_figure(11.2, 6.4)
    panels = drawing.subplots(2, 3).ravel()
    values = measured.tables["values"]
    shown = [gate for gate in GATES if gate in values]
    for ax, gate, letter in zip(panels, shown, "abcde", strict=False):
        _histograms(ax, values, gate, style)
        ax.set_title(f"({letter}) {GATES[gate]}")
    for ax in panels[len(shown) : -1]:
        ax.remove()
    _aucs(panels[-1], measured.tables["separation"], shown, style)
    about = measured.about
    add_heading(
        drawing,
        f"Similarity of an edit to inputs it covers and to others, layer {about['layer']} of "
        f"{about['model']}, {about['n']} edits",
    )
    return drawing


def verdict(measured: Measured) -> Verdict:
    """Check that the last prompt token separates better than means over visual or text tokens."""
    last = auc_of(measured, "prompt_last")
    better = [_lead(measured, gate).above(0) for gate in ("visual_mean", "text_mean")]
    leads = " and ".join(
        f"{_lead(measured, gate)} over the {GATES[gate]}" for gate in ("visual_mean", "text_mean")
    )
    statistic = (
        f"against unrelated inputs with an image the last prompt token has an AUC of {last}, a "
        f"lead of {leads}; against near neighbours its AUC is "
        f"{auc_of(measured, 'prompt_last', 'near neighbour')}. The last target token, which reads "
        f"the answer as the published code does, has {auc_of(measured, 'target_last')} and "
        f"{auc_of(measured, 'target_last', 'near neighbour')}"
    )
    if LEARNED in measured.tables["values"]:
        near = auc_of(measured, LEARNED, "near neighbour")
        statistic += f", the learned gate {auc_of(measured, LEARNED)} and {near}"
    return Verdict(all_hold(*better), f"{statistic} (n = {measured.about['n']} edits)")


def auc_of(measured: Measured, gate: str, against: str = "unrelated image") -> Estimate:
    """Return the AUC of a gate with its interval."""
    return _estimate(measured, gate, against, ("auc", "low", "high"))


def alt(measured: Measured) -> str:
    """Describe the histograms by medians, and the AUCs."""
    values, parts = measured.tables["values"], []
    for gate in (name for name in GATES if name in values):
        medians = ", ".join(
            f"{words} {np.median(found):.2f}"
            for words, found in _by_row(values, gate).items()
            if len(found)
        )
        parts.append(
            f"{GATES[gate]}: medians {medians}; AUC {auc_of(measured, gate)} against unrelated "
            f"images, {auc_of(measured, gate, 'near neighbour')} against near neighbours"
        )
    head = "Histograms of the similarity to an edit: a cosine, or log-odds for the learned gate. "
    return head + ". ".join(parts) + "."


FIGURE = Figure(
    NAME,
    "DualEdit, Figure 4",
    "Similarity of an edit to the inputs it covers and to others, by the states compared",
    "The cosine similarity of last-token states separates rephrases and other pictures of an edit "
    "from unrelated inputs, so that a threshold can gate the edit; similarities of mean visual and "
    "mean text states overlap and cannot.",
    partial(measure_gates, name=NAME),
    draw,
    verdict,
    alt,
    published="the last token's cosine separates an edit from other inputs, mean states do not",
)


def _by_row(values: pd.DataFrame, gate: str) -> dict[str, Float[np.ndarray, " input"]]:
    """Return the finite values of each kind of input, by its label."""
    known = values["relation"].isin([name for name in ROWS if name])
    found = {}
    for relation, words in ROWS.items():
        mine = values["relation"] == relation if relation else ~known
        numbers = values.loc[mine, gate].to_numpy(float)
        found[words] = numbers[np.isfinite(numbers)]
    return found


def _histograms(ax: "Axes", values: pd.DataFrame, gate: str, style: Style) -> None:
    rows = {words: _clipped(found, gate) for words, found in _by_row(values, gate).items()}
    every = np.concatenate(list(rows.values()))
    low, high = (-LIMIT, LIMIT) if gate == LEARNED else (float(every.min()), 1.0)
    edges = np.linspace(low, high, BINS + 1)
    for row, (relation, found) in enumerate(zip(ROWS, rows.values(), strict=True)):
        color = style.colors["visual" if relation in COVERED else "text"]
        counts, _ = np.histogram(found, edges)
        top = row - RIDGE * np.append(counts, 0) / max(counts.max(), 1)
        hatch = None if relation in COVERED else "////"
        ax.fill_between(edges, top, row, step="post", facecolor=color, alpha=0.75, hatch=hatch,
                        edgecolor="white", linewidth=0)  # fmt: skip
        ax.axhline(row, color=style.colors["muted"], linewidth=0.6)
        label = f"n = {len(found)}" if len(found) else "no image"
        place = 0.42 if gate == LEARNED else 0.01, row - 0.62
        ax.annotate(label, place, xycoords=("axes fraction", "data"), fontsize=7,
                    color=style.colors["muted"])  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.8, -1.0)
    ax.grid(visible=False)
    unit = "log-odds, beyond 15 at the edge" if gate == LEARNED else "cosine similarity"
    ax.set_xlabel(unit)


def _clipped(found: Float[np.ndarray, " input"], gate: str) -> Float[np.ndarray, " input"]:
    return np.clip(found, -LIMIT, LIMIT) if gate == LEARNED else np.minimum(found, 1.0)


def _aucs(ax: "Axes", table: pd.DataFrame, shown: list[str], style: Style) -> None:
    """Draw the AUC of every gate against each kind of other input, with intervals."""
    kinds = list(dict.fromkeys(table["against"]))
    for i, kind in enumerate(kinds):
        mine = table.loc[table["against"] == kind].set_index("gate").reindex(shown)
        at = np.arange(len(shown)) + 0.2 * (i - 1)
        aucs = [Estimate(*row) for row in mine[["auc", "low", "high", "n"]].to_numpy(float)]
        draw_estimates(ax, at, aucs, style, i, label=kind)
    names = {"visual_mean": "visual", "text_mean": "text", "prompt_last": "last prompt",
             "target_last": "last target", LEARNED: "learned"}  # fmt: skip
    ax.set_yticks(range(len(shown)), [names[gate] for gate in shown])
    ax.invert_yaxis()
    ax.axvline(0.5, color=style.colors["muted"], linewidth=0.8)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("ROC-AUC (chance 0.5)")
    ax.set_title(f"({'abcdef'[len(shown)]}) separation")
    ax.legend(fontsize=8, loc="lower left", title="against", title_fontsize=8)


def _lead(measured: Measured, gate: str) -> Estimate:
    return _estimate(measured, gate, "unrelated image", ("lead", "lead_low", "lead_high"))


def _estimate(measured: Measured, gate: str, against: str, columns: tuple[str, ...]) -> Estimate:
    table = measured.tables["separation"]
    row = table[(table["gate"] == gate) & (table["against"] == against)].iloc[0]
    mean, low, high = (float(row[name]) for name in columns)
    return Estimate(mean, low, high, int(row["n"]))
