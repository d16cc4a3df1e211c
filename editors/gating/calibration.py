"""Thresholds from scores of inputs that must open a gate, and of others that must not."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from attrib.errors import AttribError
from editors.gating.features import group_of

Values = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Calibration:
    """A threshold and its open rates on the inputs that it was found on.

    Attributes:
        threshold: Lowest score that opens.
        rule: The rule, in words.
        kept: Share of the covered inputs that open, averaged over relations.
        false_open: Share of the other inputs that open, averaged over relations.
        open_rates: Share that opens, by relation.
    """

    threshold: float
    rule: str
    kept: float
    false_open: float
    open_rates: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Return everything but the threshold as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "threshold"}


def calibrate(
    covered: Mapping[str, Values],
    others: Mapping[str, Values],
    *,
    false_open: float | None = None,
    keep: float | None = None,
) -> Calibration:
    """Find a gate's threshold, half way between two scores.

    Args:
        covered: Scores of inputs that must open the gate, by relation.
        others: Scores of inputs that must not, by relation.
        false_open: Take the lowest threshold at which at most this share of every group of
            `others` opens (`group_of`): averaged over all, the easy would pay for the hard.
        keep: Or the highest at which at least this share of `covered` opens. With neither, the
            highest threshold with the largest difference between the two shares (Youden). Shares
            are averaged over relations.

    Raises:
        AttribError: One side has no scores, both rules are given, or a rate is outside [0, 1].
    """
    if not covered or not others:
        raise AttribError(
            "a threshold needs inputs that an edit covers, and others: edits with rephrases or "
            "other images, and with unrelated questions (loc, m_loc) or other edits beside them"
        )
    if false_open is not None and keep is not None:
        raise AttribError("give false_open or keep, not both")
    for rate in (false_open, keep):
        if rate is not None and not 0 <= rate <= 1:
            raise AttribError(f"a rate of {rate}: expected one from 0 to 1")
    cuts = _cuts(np.concatenate([*covered.values(), *others.values()]))
    kept, opened = (
        np.mean([_open_share(v, cuts) for v in some.values()], 0) for some in (covered, others)
    )
    if false_open is not None:
        groups: dict[str, list[Any]] = {}
        for name, v in others.items():
            groups.setdefault(group_of(name), []).append(_open_share(v, cuts))
        most = np.max([np.mean(some, 0) for some in groups.values()], 0)
        at, rule = int((most <= false_open).argmax()), f"at most {false_open:g} of a group open"
    elif keep is not None:
        at, rule = _last(kept >= keep), f"at least {keep:g} of covered inputs open"
    else:
        at, rule = _last(kept - opened == (kept - opened).max()), "most kept minus falsely open"
    open_rates = {
        name: float(_open_share(v, cuts[at : at + 1])[0])
        for name, v in {**covered, **others}.items()
    }
    return Calibration(float(cuts[at]), rule, float(kept[at]), float(opened[at]), open_rates)


def _cuts(values: Values) -> Values:
    """Candidate thresholds, rising: the lowest score, between each two, above the highest."""
    levels = np.unique(values)
    if not np.isfinite(levels).all():
        raise AttribError("a score of the gate is not finite; no threshold can be found")
    between = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([levels[:1], between, [np.nextafter(levels[-1], np.inf)]])


def _open_share(values: Values, cuts: Values) -> Values:
    return (len(values) - np.searchsorted(np.sort(values), cuts)) / len(values)


def _last(holds: np.ndarray) -> int:
    return len(holds) - 1 - int(holds[::-1].argmax())
