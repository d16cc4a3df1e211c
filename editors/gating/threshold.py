"""Scores of a gate on the inputs of edits, its threshold from them, and tables of open rates."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.gate_roc import gate_roc
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.stats import RESAMPLES, clustered_interval
from editors.adapters.sites import Gate
from editors.base import encodable
from editors.gating.calibration import Calibration, calibrate
from editors.gating.classifier import NEVER
from editors.gating.features import (
    APPLIES,
    EASY,
    REQUEST,
    RelatedInput,
    collect_states,
    related_inputs,
)

Values = Float[np.ndarray, " _"]


def calibrate_scores(
    scores: pd.DataFrame, *, false_open: float | None = None, keep: float | None = None
) -> Calibration:
    """Find a threshold from the table of `gate_scores`.

    Covered inputs are the generality inputs (a request is always similar to its own edit) and
    changed pictures, others the hard locality inputs and those that were mined; without any of
    these, the requests and all locality inputs.
    """
    by = {str(name): np.asarray(some["value"]) for name, some in scores.groupby("relation")}
    covered = {name: by[name] for name in APPLIES[1:] if name in by} or {REQUEST: by[REQUEST]}
    hard = {name: values for name, values in by.items() if name not in (*APPLIES, *EASY)}
    easy = {name: by[name] for name in EASY if name in by}
    # Inputs that the learned gate's rule shuts out need no threshold: averaged with the others they
    # would let twice as many of those through.
    open_to = {name: values for name, values in easy.items() if not values.max() <= NEVER}
    others = hard or open_to or easy
    return calibrate(covered, others, false_open=false_open, keep=keep)


def gate_scores(
    vlm: VLM, samples: Sequence[EditSample], gate: Gate, *, forced: bool = True
) -> pd.DataFrame:
    """Score every input of each sample against the sample's edit.

    Args:
        vlm: The model; inputs are run through it once, unedited.
        samples: The edits.
        gate: The gate.
        forced: Whether inputs include their gold answers, as under teacher forcing, or are prompts
            alone, as when a model is used. Only a leaking gate scores them differently.

    Returns:
        The columns example, relation, value.
    """
    inputs, reads = related_inputs(samples), (gate.layers, gate.states)
    edits = collect_states(vlm, [s.request for s in samples], *reads, targets=True, what="edits")
    states = collect_states(vlm, [one.request for one in inputs], *reads, targets=forced)
    return score_table([sample.id for sample in samples], inputs, states, edits, gate)


def score_table(
    ids: Sequence[str],
    inputs: Sequence[RelatedInput],
    states: Sequence[Mapping[str, Tensor]],
    edits: Sequence[Mapping[str, Tensor]],
    gate: Gate,
) -> pd.DataFrame:
    """Return the table of `gate_scores`, given the features of inputs and edits."""
    values = torch.full((len(inputs),), torch.nan)
    of: dict[int, list[int]] = {}
    for i, one in enumerate(inputs):
        of.setdefault(one.row, []).append(i)
    for row, own in of.items():
        scores = gate.scores([dict(states[i]) for i in own], [dict(edits[row])])
        values[own] = scores[:, 0].float().cpu()
    return pd.DataFrame(
        {
            "example": [ids[one.row] for one in inputs],
            "relation": [one.relation for one in inputs],
            "value": values.double().numpy(),
        }
    )


def gate_table(
    vlm: VLM,
    samples: Sequence[EditSample],
    gates: Mapping[str, Gate],
    *,
    forced: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """AUC and open rates of gates by kind of input, with 95 % intervals.

    The bootstrap of AUCs draws edits with all their inputs, and draws are shared by the gates. Open
    rates have Wilson's intervals where an edit has one input of the kind. Thresholds are the gates'
    own.

    Args:
        vlm: The model; every input is run through it once per gate, unedited.
        samples: Test edits.
        gates: By name.
        forced: As in `gate_scores`.
        seed: Seed of the bootstrap.
        resamples: Number of draws.

    Returns:
        One row per gate and relation: `gate`, `relation`, `open` (share of these inputs that opens
        the gate) with `open_low` and `open_high`, `n` (edits), `auc` (generality inputs against
        these; NaN for inputs that must open) with `auc_low` and `auc_high`, `threshold`.

    Raises:
        AttribError: There is no sample.
    """
    samples = encodable(vlm, samples)
    if not samples:
        raise AttribError("there is no edit to evaluate gates on; see the quarantined rows")
    tables = []
    for name, gate in gates.items():
        scores = gate_scores(vlm, samples, gate, forced=forced)
        table = open_rates(scores, gate.threshold, seed=seed, resamples=resamples)
        tables.append(table.assign(gate=name, threshold=gate.threshold))
    return pd.concat(tables, ignore_index=True)


def open_rates(
    scores: pd.DataFrame, threshold: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Return the rows of `gate_table` for one gate, from its `gate_scores`."""
    provenance = {"seed": seed}
    opened = scores.assign(value=(scores["value"] >= threshold).astype(float))
    shares = Result("open", opened, provenance).mean(["relation"], resamples=resamples)
    ends = [_share_ends(opened.loc[opened["relation"] == n], seed) for n in shares["relation"]]
    shares[["low", "high"]] = np.array(ends).reshape(-1, 2)
    shares = shares.rename(columns={"mean": "open", "low": "open_low", "high": "open_high"})
    # The request itself would be compared with itself.
    rest = scores[scores["relation"] != REQUEST].assign(layer=0, token="gate")
    columns = ["auc", "auc_low", "auc_high"]
    if rest.empty:
        return shares.assign(**dict.fromkeys(columns, float("nan")))
    auc = gate_roc(Result("gate", rest, provenance), resamples=resamples)
    return shares.merge(auc[["relation", *columns]], "left", "relation")


def _share_ends(opened: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Interval of the share that opens; an edit may have several such inputs."""
    items = pd.factorize(opened["example"])[0]
    return clustered_interval(np.asarray(opened["value"], float), items, seed=seed)
