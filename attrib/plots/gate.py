"""Similarity of edits to other inputs (DualEdit, Fig. 4), and how well a gate separates them."""

from collections.abc import Iterable
from itertools import cycle
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from attrib.analyses.gate_roc import ANY, POSITIVE, PUBLISHED_THRESHOLD
from attrib.analyses.gating import TOKENS
from attrib.plots.curves import Series, draw_series
from attrib.plots.drawing import BLUE, GREEN, GREY, INK, MUTED, VERMILION, new_axes, style
from attrib.results import Result

PURPLE, OCHRE = "#8f4f9f", "#946200"
LABELS = {
    "text_generality": "rephrased (T-Gen)",
    "visual_generality": "other picture (V-Gen)",
    "text_locality": "text alone (T-Loc)",
    "visual_locality": "unrelated (M-Loc)",
    "same_image_same_kind": "same image, same kind",
    "same_image_other_kind": "same image, other kind",
    "same_question_other_image": "same question, other image",
    ANY: "all of these",
}
LOOKS = (
    (GREY, "x", ":"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (PURPLE, "v", "--"),
    (OCHRE, "D", "-"),
)
STATES = {
    "visual_mean": "mean of the visual tokens",
    "text_mean": "mean of the text tokens",
    "prompt_last": "last prompt token",
    "target_last": "last target token (leaks)",
}
STATE_LOOKS = ((BLUE, "o", "-"), (VERMILION, "s", "--"), (INK, "D", "-"), (GREY, "x", ":"))
BINS = 48
RIDGE = 0.86  # height of the highest bar; rows are 1 apart


def gate_auc(table: pd.DataFrame, token: str, ax: Axes | None = None) -> Axes:
    """ROC-AUC of generality against each kind of locality, over the layers, for one token.

    `table` has the ROC statistics of `attrib.analyses.gate_roc`.
    """
    rows = table.loc[table["token"] == token]
    kinds = [kind for kind in _in_order(rows["relation"]) if kind != ANY]
    looks = dict(zip(kinds, cycle(LOOKS), strict=False)) | {ANY: (INK, "o", "-")}
    series = [Series(_label(kind), {"relation": kind}, *look) for kind, look in looks.items()]
    return _auc(rows, series, f"Gate on the {STATES[token]}", ax)


def gate_tokens(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ROC-AUC of generality against all kinds of locality, over the layers, for every token."""
    rows = table.loc[table["relation"] == ANY]
    series = [
        Series(STATES[token], {"token": token}, *look)
        for token, look in zip(TOKENS, STATE_LOOKS, strict=True)
    ]
    return _auc(rows, series, "Gates on different states", ax)


def gate_similarity(
    result: Result, table: pd.DataFrame, token: str, layer: int, ax: Axes | None = None
) -> Axes:
    """Histograms of the similarities of one token in one layer: a row per kind of input.

    Rows share the horizontal scale; each has its own height. The dashed line is the threshold that
    separates generality (blue) from all locality (red) best, the dotted one is that of DualEdit's
    published code.
    """
    values = _by_kind(result.where(token=token, layer=layer).frame)
    cell = table[(table["token"] == token) & (table["layer"] == layer)].set_index("relation")
    kinds = [str(kind) for kind in cell.index]
    auc, best = (
        dict(zip(kinds, np.asarray(cell[c], float).tolist(), strict=True))
        for c in ("auc", "threshold")
    )
    edges = _edges(values)
    with style():
        ax = new_axes(6.4, 1.1 + 0.55 * max(len(values), 2)) if ax is None else ax
        for row, (kind, similarities) in enumerate(values.items()):
            _ridge(ax, row, similarities, edges, BLUE if kind in POSITIVE else VERMILION)
            if kind in auc:
                ax.annotate(f"AUC {auc[kind]:.2f}", (1.01, row), fontsize=9, color=MUTED,
                            xycoords=("axes fraction", "data"), va="bottom")  # fmt: skip
        ax.set_yticks(range(len(values)), [_label(kind) for kind in values])
        ax.set_ylim(len(values) - 0.7, -1.0)
        ax.set_xlim(edges[0], edges[-1])
        ax.grid(visible=False)
        ax.set_title(f"{STATES[token].capitalize()}, layer {layer}", pad=18)
        ax.set_xlabel("cosine similarity to the edit")
        lines = [(PUBLISHED_THRESHOLD, "published", ":")]
        if ANY in auc:
            lines.append((best[ANY], "best", "--"))
        for (at, name, line), side in zip(sorted(lines), ("right", "left"), strict=False):
            ax.axvline(at, color=INK, linewidth=1.2, linestyle=line)
            _annotate(ax, at, f"{name} {at:.3g}", side)
    ax.set_label(_description(values, auc))
    return ax


def _auc(rows: pd.DataFrame, series: list[Series], title: str, ax: Axes | None) -> Axes:
    rows = rows.rename(columns={"auc": "mean", "auc_low": "low", "auc_high": "high"})
    with style():
        ax = new_axes(5.6, 3.9) if ax is None else ax
        ax.axhline(0.5, color=MUTED, linewidth=0.8)
    draw_series(rows, series, ax, title, columns=2)
    ax.set_ylabel("ROC-AUC (chance 0.5)")
    ax.set_ylim(top=1.02)
    return ax


def _by_kind(frame: pd.DataFrame) -> dict[str, Float[np.ndarray, " item"]]:
    """The finite values of each kind of input, in order."""
    frame = frame.loc[np.isfinite(frame["value"])]
    return {
        kind: np.asarray(frame.loc[frame["relation"] == kind, "value"], dtype=float)
        for kind in _in_order(frame["relation"])
    }


def _edges(values: dict[str, Float[np.ndarray, " item"]]) -> Float[np.ndarray, " edge"]:
    """Edges of bins over all values, up to 1."""
    lowest = min((some.min() for some in values.values()), default=0.0)
    return np.linspace(min(np.floor(lowest * 20) / 20, 0.75), 1.0, BINS + 1)


def _ridge(
    ax: Axes, row: int, values: Float[np.ndarray, " item"], edges: Float[np.ndarray, " edge"],
    color: str,
) -> None:  # fmt: skip
    counts, _ = np.histogram(np.minimum(values, 1.0), edges)
    top = row - RIDGE * np.append(counts, 0) / max(counts.max(), 1)
    ax.fill_between(edges, top, row, step="post", color=color, alpha=0.75, linewidth=0)
    ax.axhline(row, color=MUTED, linewidth=0.6)


def _annotate(ax: Axes, at: float, text: str, side: Literal["left", "right"]) -> None:
    """Write above the axes, starting or ending at the horizontal position `at`."""
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(text, (at, 1.0), xytext=(0, 3), ha=side, fontsize=8.5, **where)


def _description(values: dict[str, Float[np.ndarray, " item"]], auc: dict[str, float]) -> str:
    parts = [
        f"{_label(kind)}: median {np.median(some):.3g} of {len(some)}"
        + (f", AUC {auc[kind]:.2f}" if kind in auc else "")
        for kind, some in values.items()
    ]
    return f"Histograms of the cosine similarity to the edit. {'; '.join(parts) or 'No values'}."


def _in_order(relations: Iterable[object]) -> list[str]:
    known, kinds = list(LABELS), set(map(str, relations))
    return sorted(kinds, key=lambda k: (known.index(k) if k in known else len(known), k))


def _label(kind: str) -> str:
    return LABELS.get(kind, kind.replace("_", " "))
