"""Summary of how well a similarity gate separates generality from locality inputs."""

from typing import Any

import numpy as np
import pandas as pd

from attrib.analyses.gate_roc import ANY, PUBLISHED_THRESHOLD, best_layer, overall
from attrib.analyses.gating import LEAKING, TOKENS
from attrib.report.summaries import model_name, percent
from attrib.results import Result

STATES = {
    "visual_mean": "the mean of the visual tokens",
    "text_mean": "the mean of the text tokens",
    "prompt_last": "the last prompt token",
    "target_last": "the last target token",
}


def summarize_gate(
    result: Result, table: pd.DataFrame, token: str, layer: int | None = None
) -> str:
    """How well a gate on `token` separates edits from the rest, at its best layer or a given one.

    Args:
        result: the similarities.
        table: ROC statistics of them, from `attrib.analyses.gate_roc`.
        token: the state that the gate compares.
        layer: the layer; by default that with the highest AUC against all locality inputs.
    """
    chosen = best_layer(table, token) if layer is None else layer
    cell = table.loc[(table["token"] == token) & (table["layer"] == chosen)]
    whole = _rows(overall(table, token).query("layer == @chosen"))[0]
    sentences = [
        f"{model_name(result)}: a gate on {STATES[token]} of layer {chosen} separates generality "
        f"from locality inputs with ROC-AUC {_estimate(whole, 'auc')} (n = {whole['n']}).",
        _hardest(cell),
        f"A threshold of {_estimate(whole, 'threshold', 3)} opens the gate for "
        f"{_rate(whole, 'true_open')} of generality and {_rate(whole, 'false_open')} of locality "
        f"inputs; DualEdit's fixed {PUBLISHED_THRESHOLD} for "
        f"{percent(whole['published_true_open'])} and {percent(whole['published_false_open'])}.",
        f"{'Threshold and layer' if layer is None else 'The threshold'} tuned on these "
        f"{result.examples} examples; validate on held-out data.",
        _leak(table, token),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def gate_auc_table(table: pd.DataFrame, layer: int) -> str:
    """ROC-AUC of every token against every kind of locality at one layer, as plain columns."""
    cell = table.loc[table["layer"] == layer]
    wide = cell.pivot_table("auc", "relation", "token", dropna=False)
    wide = wide[[token for token in TOKENS if token in wide]]
    wide = wide.rename(columns={LEAKING: f"{LEAKING} (leaks)"}).rename_axis(None, axis=1)
    kinds = sorted(map(str, wide.index), key=lambda kind: (kind == ANY, kind))
    shown = wide.loc[kinds].rename_axis(f"ROC-AUC, layer {layer}")
    return shown.to_string(float_format="{:.3f}".format, na_rep="-")


def _hardest(cell: pd.DataFrame) -> str:
    kinds = [row for row in _rows(cell) if row["relation"] != ANY and np.isfinite(row["auc"])]
    if len(kinds) < 2:
        return ""
    worst = min(kinds, key=lambda row: row["auc"])
    return f"Hardest: {worst['relation']}, AUC {_estimate(worst, 'auc')}."


def _leak(table: pd.DataFrame, token: str) -> str:
    if token == LEAKING:
        return "This token leaks the gold answer, which a deployed gate does not have."
    rows = overall(table, LEAKING)
    if not np.isfinite(rows["auc"]).any():
        return ""
    return (
        f"{STATES[LEAKING].capitalize()}, which leaks the gold answer (DualEdit's published code "
        f"compares it), reaches AUC {rows['auc'].max():.2f}."
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _estimate(row: dict[str, Any], name: str, digits: int = 2) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.{digits}f} (95 % CI {low:.{digits}f}-{high:.{digits}f})"


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{percent(row[name])} (95 % CI {percent(row[f'{name}_low'], row[f'{name}_high'])})"
