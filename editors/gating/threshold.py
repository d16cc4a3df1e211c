"""Where a gate opens: a threshold from the scores of training edits and their inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate
from editors.gating.inputs import COVERED, EASY, REQUEST, RelatedInput, collect_states, related

Values = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it does to the inputs that it was found on.

    Attributes:
        threshold: Scores from it on open.
        rule: In words.
        kept: Mean share of the covered inputs that open it; each relation counts the same.
        false_open: The same of those that must not.
        open_rates: By relation.
    """

    threshold: float
    rule: str
    kept: float
    false_open: float
    open_rates: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "rule": self.rule,
            "kept": self.kept,
            "false_open": self.false_open,
            "open_rates": dict(self.open_rates),
        }


def calibrate(
    covered: Mapping[str, Values],
    others: Mapping[str, Values],
    *,
    false_open: float | None = None,
    keep: float | None = None,
) -> Calibration:
    """The threshold of a gate, half way between two scores.

    Args:
        covered: By relation the scores of inputs that must open it.
        others: By relation the scores of those that must not.
        false_open: The lowest threshold at which no larger share of `others` opens.
        keep: Or the highest one at which at least this share of `covered` opens. With neither, the
            one where the share of `covered` that opens is most above that of `others` (Youden), of
            equals the highest. Shares are means over relations, each counting the same.

    Raises:
        AttribError: No scores on one of the sides, both rules given, or a rate outside [0, 1].
    """
    if not covered or not others:
        raise AttribError("a threshold needs inputs that an edit covers, and others")
    if false_open is not None and keep is not None:
        raise AttribError("give false_open or keep, not both")
    for rate in (false_open, keep):
        if rate is not None and not 0 <= rate <= 1:
            raise AttribError(f"a rate of {rate}: expected one from 0 to 1")
    cuts = _cuts(np.concatenate([*covered.values(), *others.values()]))
    kept, opened = (
        np.mean([_open(v, cuts) for v in some.values()], 0) for some in (covered, others)
    )
    if false_open is not None:
        at, rule = int((opened <= false_open).argmax()), f"at most {false_open:g} of others open"
    elif keep is not None:
        at, rule = _last(kept >= keep), f"at least {keep:g} of covered inputs open"
    else:
        at, rule = _last(kept - opened == (kept - opened).max()), "most kept minus falsely open"
    rates = {
        name: float(_open(v, cuts[at : at + 1])[0]) for name, v in {**covered, **others}.items()
    }
    return Calibration(float(cuts[at]), rule, float(kept[at]), float(opened[at]), rates)


def calibrated(
    scores: pd.DataFrame, *, false_open: float | None = None, keep: float | None = None
) -> Calibration:
    """The threshold by what `gate_scores` returned.

    Covered are the generality inputs (a request itself always looks like its edit), others the hard
    locality inputs; where there are none of these, the requests and all locality inputs.
    """
    by = {str(name): np.asarray(some["value"]) for name, some in scores.groupby("relation")}
    covered = {name: by[name] for name in COVERED[1:] if name in by} or {REQUEST: by[REQUEST]}
    hard = {name: values for name, values in by.items() if name not in (*COVERED, *EASY)}
    others = hard or {name: by[name] for name in EASY if name in by}
    return calibrate(covered, others, false_open=false_open, keep=keep)


def gate_scores(
    vlm: VLM, samples: Sequence[EditSample], gate: Gate, *, forced: bool = True
) -> pd.DataFrame:
    """How each sample's edit scores all of the sample's inputs.

    Args:
        vlm: The model; inputs are run through it once, unedited.
        samples: The edits.
        gate: What scores.
        forced: Whether inputs come with their gold answers, as under teacher forcing, or as prompts
            alone, as when a model is used. It matters only to a gate that leaks.

    Returns:
        The columns example, relation, value.
    """
    inputs = related(samples)
    edits = collect_states(vlm, [s.request for s in samples], gate, targets=True, what="edits")
    states = collect_states(vlm, [one.request for one in inputs], gate, targets=forced)
    return score_table([sample.id for sample in samples], inputs, states, edits, gate)


def score_table(
    ids: Sequence[str],
    inputs: Sequence[RelatedInput],
    states: Sequence[Mapping[str, Tensor]],
    edits: Sequence[Mapping[str, Tensor]],
    gate: Gate,
) -> pd.DataFrame:
    """The same from states that are known: of each input, and of each sample's edit."""
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


def _cuts(values: Values) -> Values:
    """Thresholds that part the scores, rising: below all of them, between each two, above all."""
    levels = np.unique(values)
    if not np.isfinite(levels).all():
        raise AttribError("a score of the gate is not finite; no threshold can be found")
    between = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([levels[:1], between, [np.nextafter(levels[-1], np.inf)]])


def _open(values: Values, cuts: Values) -> Values:
    return (len(values) - np.searchsorted(np.sort(values), cuts)) / len(values)


def _last(holds: np.ndarray) -> int:
    return len(holds) - 1 - int(holds[::-1].argmax())
