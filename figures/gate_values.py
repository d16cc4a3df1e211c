"""How alike edits and other inputs are to the gates, and how well each tells them apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from figures.figure import Measured, Setting
from figures.measuring import RESAMPLES, about, opened, tables_of
from figures.trained import has_editor, load_editor

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
    """Tables "values" (a row per edit and input, a column per gate) and "separation".

    The layer is the one that the gate of the trained DualEdit reads; where there is no such editor,
    the one where the last prompt token tells best, and there is no learned gate.
    """
    from attrib.analyses.tables import measure_gate

    vlm, data = opened(setting)
    table = tables_of(vlm, data, measure_gate)["gate"]
    editor = load_editor(setting, "dualedit", vlm) if has_editor(setting, "dualedit") else None
    gate = None if editor is None else editor.gate
    layer = _best_layer(table) if gate is None else max(gate.layers)
    values = cosines(table, layer)
    more: dict[str, Any] = {"layer": layer, "num_layers": vlm.num_layers}
    if gate is not None and gate.name == LEARNED:
        values = values.merge(_learned(vlm, data, gate), how="left")
        more["threshold"] = float(gate.threshold)
    n = len(set(values["example"]))
    tables = {"values": values, "separation": separations(values, setting.seed)}
    return Measured(tables, {}, about(name, setting, n, **more))


def cosines(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    """One row per edit and input with the columns of `COSINES`, of one layer."""
    here = table.loc[table["layer"] == layer]
    keys = ["example", "relation", "item"]
    found = here.pivot(index=keys, columns="token", values="value")[list(COSINES)]
    return found.reset_index().rename_axis(columns=None)


def separations(values: pd.DataFrame, seed: int) -> pd.DataFrame:
    """How well each gate tells covered inputs from others: AUC with its 95 % interval.

    Columns: gate, against (a key of `AGAINST`), auc, low, high, and lead with lead_low and
    lead_high, by how much the AUC of the last prompt token is above it; n edits. Edits are drawn
    with all of their inputs, the same draws for all gates.
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
    """The AUC of covered inputs against those of some relations, and that of bootstrap draws."""
    from attrib.analyses.gate_roc import separate

    relation = np.asarray(values["relation"], str)
    positive = np.isin(relation, COVERED)
    others = np.isin(relation, relations) if relations else ~_known(values)
    example, ids = pd.factorize(values["example"])
    scores = np.asarray(values[gate], float)
    at = np.flatnonzero((positive | others) & np.isfinite(scores))
    if not (others[at].any() and positive[at].any()):
        return np.full(RESAMPLES + 1, np.nan)
    n = len(ids)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights = np.vstack([np.ones(n), draws]).T
    return separate(scores[at], positive[at], weights[example[at]].astype(float)).auc


def _known(values: pd.DataFrame) -> Bool[np.ndarray, " input"]:
    return np.isin(np.asarray(values["relation"], str), [*COVERED, *UNRELATED])


def _row(name: str, draws: Float[np.ndarray, " draw"]) -> dict[str, float]:
    known = draws[1:][np.isfinite(draws[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    ends = {"low": "low", "high": "high"} if name == "auc" else {
        "low": f"{name}_low", "high": f"{name}_high"}  # fmt: skip
    return {name: float(draws[0]), ends["low"]: float(low), ends["high"]: float(high)}


def _learned(vlm: "VLM", data: "EditData", gate: Any) -> pd.DataFrame:
    """The learned gate's log-odds for prompts alone, in a column of its own."""
    from editors.gating.threshold import gate_scores

    scores = gate_scores(vlm, list(data), gate, forced=False)
    item = scores.groupby(["example", "relation"]).cumcount()
    return scores.rename(columns={"value": LEARNED}).assign(item=item)


def _best_layer(table: pd.DataFrame) -> int:
    layers = sorted({int(layer) for layer in table["layer"]})

    def auc(layer: int) -> float:
        return float(auc_draws(cosines(table, layer), "prompt_last", UNRELATED, 0)[0])

    return max(layers, key=auc)
