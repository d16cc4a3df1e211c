"""What a gate study says, in sentences that are computed."""

from typing import Any

import numpy as np
import pandas as pd

from attrib.analyses.gate_roc import ANY, PUBLISHED_THRESHOLD, best_layer, overall
from attrib.analyses.gating import LEAKING, TOKENS
from attrib.results import Result

NAMES = {
    "visual_mean": "the mean of the visual tokens",
    "text_mean": "the mean of the words",
    "prompt_last": "the last prompt token",
    "target_last": "the last target token",
}


def about_gate(result: Result, table: pd.DataFrame, token: str, layer: int | None = None) -> str:
    """How well a gate on `token` tells edits from the rest, at its best layer or the one given.

    Args:
        result: the similarities.
        table: what `gate_roc` returned of them.
        token: the state that the gate compares.
        layer: where; by default where the AUC against all locality is highest.
    """
    chosen = best_layer(table, token) if layer is None else layer
    cell = table.loc[(table["token"] == token) & (table["layer"] == chosen)]
    whole = _rows(overall(table, token).query("layer == @chosen"))[0]
    where = f"{NAMES[token]} of layer {chosen}"
    sentences = [
        f"In {_model(result)}, {where} tells generality from locality inputs with a ROC-AUC of "
        f"{_ends(whole, 'auc')} ({whole['n']} examples).",
        _hardest(cell),
        f"A threshold of {_ends(whole, 'threshold', 3)} opens a gate to "
        f"{whole['true_open']:.0%} of the former and {whole['false_open']:.0%} of the latter "
        f"({_percent(whole, 'true_open')} and {_percent(whole, 'false_open')}); the fixed "
        f"{PUBLISHED_THRESHOLD} of DualEdit to {whole['published_true_open']:.0%} and "
        f"{whole['published_false_open']:.0%}.",
        ("Threshold and layer were" if layer is None else "The threshold was")
        + " chosen on these examples: choose on others what you deploy.",
        _leaks(table, token),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def gate_lines(table: pd.DataFrame, layer: int) -> str:
    """ROC-AUC of every token against every kind of locality at one layer, as plain columns."""
    cell = table.loc[table["layer"] == layer]
    wide = cell.pivot_table("auc", "relation", "token", dropna=False)
    wide = wide[[token for token in TOKENS if token in wide]]
    wide = wide.rename(columns={LEAKING: f"{LEAKING} (leaks)"}).rename_axis(None, axis=1)
    kinds = sorted(map(str, wide.index), key=lambda kind: (kind == ANY, kind))
    shown = wide.loc[kinds].rename_axis(f"ROC-AUC, layer {layer}")
    return shown.to_string(float_format="{:.3f}".format, na_rep="-")


def _hardest(cell: pd.DataFrame) -> str:
    kinds = [row for row in _rows(cell) if row["relation"] != ANY and row["auc"] == row["auc"]]
    if len(kinds) < 2:
        return ""
    worst = min(kinds, key=lambda row: row["auc"])
    return f"Hardest to tell is {worst['relation']}: {_ends(worst, 'auc')}."


def _leaks(table: pd.DataFrame, token: str) -> str:
    if token == LEAKING:
        return "This token leaks: it is read behind the gold answer, which no gate has when used."
    rows = overall(table, LEAKING)
    if not np.isfinite(rows["auc"]).any():
        return ""
    return (
        f"{NAMES[LEAKING].capitalize()}, which leaks the gold answer (DualEdit's program reads "
        f"it), reaches {rows['auc'].max():.2f}."
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _ends(row: dict[str, Any], name: str, digits: int = 2) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.{digits}f} (95% interval {low:.{digits}f} to {high:.{digits}f})"


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_low']:.0%} to {row[f'{name}_high']:.0%}"


def _model(result: Result) -> str:
    return str(result.provenance.get("model", {}).get("name", "the model"))
