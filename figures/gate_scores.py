"""Gate scores of edits and other inputs, and how well each gate separates them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from attrib.stats import bootstrap_weights, interval, roc
from figures.estimates import RESAMPLES
from figures.figure import Measured, Setting
from figures.measure import collect_tables, load_inputs, provenance
from figures.trained_editor import has_editor, load_editor

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM

COVERED = ("text_generality", "visual_generality")
UNRELATED = ("text_locality", "visual_locality")
COSINES = ("visual_mean", "text_mean", "prompt_last", "target_last")
LEARNED = "learned"
AGAINST: Mapping[str, tuple[str, ...]] = {
    "unrelated image": ("visual_locality",),
    "unrelated text": ("text_locality",),
    "near neighbour": (),  # all that are neither covered nor unrelated
}


def measure_gates(setting: Setting, name: str) -> Measured:
    """Measure the tables "values" (a row per edit and input, a column per gate) and "separation".

    The layer is the one that the gate of the trained DualEdit reads. Without that editor it is the
    layer where the last prompt token separates best, and the learned gate is left out.
    """
    from attrib.analyses.gating import measure_gate

    vlm, data = load_inputs(setting)
    table = collect_tables(vlm, data, measure_gate)["gate"]
    editor = load_editor(setting, "dualedit", vlm) if has_editor(setting, "dualedit") else None
    gate = None if editor is None else editor.gate
    layer = _best_layer(table) if gate is None else max(gate.layers)
    values = cosines(table, layer)
    more: dict[str, Any] = {"layer": layer, "num_layers": vlm.num_layers}
    if gate is not None and gate.name == LEARNED:
        values = values.merge(_learned(vlm, data, gate), how="left")
        more["threshold"] = float(gate.threshold)
    n = len(set(values["example"]))
    tables = {"values": values, "separation": gate_aucs(values, setting.seed)}
    return Measured(tables, {}, provenance(name, setting, n, **more))


def cosines(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    """Return one row per edit and input with the columns `COSINES`, for one layer."""
    here = table.loc[table["layer"] == layer]
    keys = ["example", "relation", "item"]
    found = here.pivot(index=keys, columns="token", values="value")[list(COSINES)]
    return found.reset_index().rename_axis(columns=None)


def gate_aucs(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return how well each gate separates covered inputs from others: AUC, 95 % interval.

    Columns: gate; against (a key of `AGAINST`); auc, low, high; lead, lead_low, lead_high (the AUC
    of the last prompt token minus this AUC); n edits. Edits are resampled with all of their inputs,
    the same resamples for all gates.
    """
    gates = [name for name in (*COSINES, LEARNED) if name in values]
    rows = []
    for against, relations in AGAINST.items():
        draws = {name: auc_draws(values, name, relations, seed) for name in gates}
        for name, found in draws.items():
            lead = draws["prompt_last"] - found
            rows.append({"gate": name, "against": against, **_row("auc", found)}
                        | _row("lead", lead) | {"n": values["example"].nunique()})  # fmt: skip
    return pd.DataFrame(rows)


def auc_draws(
    values: pd.DataFrame, gate: str, relations: Sequence[str], seed: int
) -> Float[np.ndarray, " draw"]:
    """Return the AUC of covered inputs against some relations, then those of resamples."""
    relation = np.asarray(values["relation"], str)
    positive = np.isin(relation, COVERED)
    others = np.isin(relation, relations) if relations else ~_known(values)
    example, ids = pd.factorize(values["example"])
    scores = np.asarray(values[gate], float)
    at = np.flatnonzero((positive | others) & np.isfinite(scores))
    if not (others[at].any() and positive[at].any()):
        return np.full(RESAMPLES + 1, np.nan)
    weights = bootstrap_weights(len(ids), resamples=RESAMPLES, seed=seed)
    return roc(scores[at], positive[at], weights[:, example[at]]).auc


def _known(values: pd.DataFrame) -> Bool[np.ndarray, " input"]:
    return np.isin(np.asarray(values["relation"], str), [*COVERED, *UNRELATED])


def _row(name: str, draws: Float[np.ndarray, " draw"]) -> dict[str, float]:
    low, high = interval(draws[1:]).tolist()
    prefix = "" if name == "auc" else f"{name}_"
    return {name: float(draws[0]), f"{prefix}low": low, f"{prefix}high": high}


def _learned(vlm: "VLM", data: "EditData", gate: Any) -> pd.DataFrame:
    """Return the log-odds of the learned gate for prompts, as a column."""
    from editors.gating.threshold import gate_scores

    scores = gate_scores(vlm, list(data), gate, forced=False)
    item = scores.groupby(["example", "relation"]).cumcount()
    return scores.rename(columns={"value": LEARNED}).assign(item=item)


def _best_layer(table: pd.DataFrame) -> int:
    layers = sorted({int(layer) for layer in table["layer"]})

    def auc(layer: int) -> float:
        return float(auc_draws(cosines(table, layer), "prompt_last", UNRELATED, 0)[0])

    return max(layers, key=auc)
