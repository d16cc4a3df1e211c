"""How well gates tell what an edit covers from what it must leave alone, side by side."""

from collections.abc import Mapping, Sequence

import pandas as pd

from attrib.analyses.gate_roc import separation
from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.stats import RESAMPLES
from editors.adapters.sites import Gate
from editors.gating.inputs import REQUEST
from editors.gating.threshold import gate_scores


def gate_table(
    vlm: VLM,
    samples: Sequence[EditSample],
    gates: Mapping[str, Gate],
    *,
    forced: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """AUC and open rates of gates against each kind of input, with 95 % bootstrap intervals.

    An edit with all of its inputs is drawn together; the same draws serve all gates. Thresholds are
    the gates' own, found elsewhere.

    Args:
        vlm: The model; every input is run through it once per gate, unedited.
        samples: Test edits.
        gates: By the names to give them.
        forced: Whether inputs come with their gold answers, as under teacher forcing. It matters
            only to a gate that leaks them; by default prompts come alone, as when a model is used.
        seed: Of the draws.
        resamples: Their number.

    Returns:
        One row per gate and relation: `gate`, `relation`, `open` (share of these inputs that opens
        the gate) with `open_low` and `open_high`, `n` (edits), `auc` (generality inputs against
        these; NaN for inputs that must open) with `auc_low` and `auc_high`, `threshold`.

    Raises:
        AttribError: There is no sample.
    """
    if not samples:
        raise AttribError("there is no edit to judge gates by; see the quarantined rows")
    tables = []
    for name, gate in gates.items():
        scores = gate_scores(vlm, samples, gate, forced=forced)
        table = rates(scores, gate.threshold, seed=seed, resamples=resamples)
        tables.append(table.assign(gate=name, threshold=gate.threshold))
    return pd.concat(tables, ignore_index=True)


def rates(
    scores: pd.DataFrame, threshold: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """The rows of one gate, from what `gate_scores` returned for it."""
    provenance = {"seed": seed}
    opened = scores.assign(value=(scores["value"] >= threshold).astype(float))
    shares = Result("open", opened, provenance).mean(["relation"], resamples=resamples)
    shares = shares.rename(columns={"mean": "open", "low": "open_low", "high": "open_high"})
    # The request itself is no test of a gate: it is compared with itself.
    told = scores[scores["relation"] != REQUEST].assign(layer=0, token="gate")
    if told.empty:
        return shares.assign(auc=float("nan"), auc_low=float("nan"), auc_high=float("nan"))
    apart = separation(Result("gate", told, provenance), resamples=resamples)
    return shares.merge(apart[["relation", "auc", "auc_low", "auc_high"]], "left", "relation")
