"""From evidence to a report: every rule applied, and how much the examples decided of it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from attrib.errors import AttribError
from attrib.results import Result
from attrib.selection.evidence import Evidence, command_for, gather
from attrib.selection.report import Choice, LayerReport
from attrib.selection.rules import (
    CONSENSUS,
    CONSENSUS_RULES,
    MODALITIES,
    RULES,
    Draws,
    Modality,
    RuleName,
    consensus,
)
from attrib.stats import RESAMPLES, bootstrap_weights, weighted_means

ENDS = (0.025, 0.975)
DIGITS = 10


def select_layers(
    results: Iterable[Result] | Mapping[str, Result],
    rule: RuleName = "consensus",
    *,
    number: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LayerReport:
    """The layers to edit, per modality, and what speaks for them.

    Args:
        results: tables of one model on one dataset: "contributions", "sweep" of text and of visual
            tokens, "patching"; "attention" and "faithfulness" add evidence that does not vote.
        rule: which rule chooses; all that can be computed are reported.
        number: how many layers per modality, best first.
        resamples: bootstrap draws of examples. One draw is the same examples for every table.
        seed: of the draws.

    Raises:
        AttribError: no table has evidence, tables are of different models or data, or the rule
            asked for cannot be computed for any modality.
    """
    if rule not in get_args(RuleName) or number < 1:
        raise AttribError(
            f"rule={rule!r}, number={number}: rules are {', '.join(get_args(RuleName))}; at least "
            "one layer"
        )
    evidence = gather(results)
    weights = bootstrap_weights(len(evidence.examples), resamples=resamples, seed=seed)
    choices: dict[str, dict[str, Choice]] = {}
    left_out: list[str] = []
    for modality in MODALITIES:
        choices[modality], skipped = _choices(evidence, modality, weights)
        left_out += [line for name, line in skipped.items() if name in (rule, *CONSENSUS_RULES)]
    if not any(rule in chosen for chosen in choices.values()):
        raise AttribError(f"no layer can be selected by {rule}: {'; '.join(left_out)}")
    layers = {
        m: choices[m][rule].ranking[:number] if rule in choices[m] else [] for m in MODALITIES
    }
    agreement = {m: agreement_of(choices[m]) for m in MODALITIES}
    provenance = {**evidence.provenance, "seed": seed, "resamples": resamples}
    return LayerReport(
        layers, rule, choices, agreement, left_out, evidence.num_layers, _meanings(), provenance
    )


def chosen(scores: Draws, examples: int, weights: Mapping[str, float] | None = None) -> Choice:
    """What scores choose: the best layer of the data, and how often draws agree.

    Layers that share the first place share the draw: scores that are all the same leave every
    layer as likely as the next.
    """
    scores = _without_rounding(scores)
    first = _winners(scores[:1])
    winners = _winners(scores[1:]) if len(scores) > 1 and examples > 1 else first
    winners = winners[winners.any(1)]
    split = winners / winners.sum(1, keepdims=True)
    shares = split.mean(0) if len(split) else first[0] / first.sum()
    low, high = (int(np.searchsorted(np.cumsum(shares), end - 1e-9)) for end in ENDS)
    known = [float(s) if np.isfinite(s) else None for s in scores[0]]
    layer = int(first[0].argmax())
    return Choice(
        layer, tuple(known), tuple(map(float, shares)), low, high, examples, dict(weights or {})
    )


def agreement_of(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """How far apart the voting rules are.

    `picks` of each; `spread`: layers between the lowest and the highest of them; `correlation`:
    mean rank correlation over layers of their scores, None with fewer than two rules.
    """
    voters = {name: choices[name] for name in CONSENSUS_RULES if name in choices}
    picks = {name: choice.layer for name, choice in voters.items()}
    table = pd.DataFrame({n: pd.Series(c.scores, dtype=float).rank() for n, c in voters.items()})
    spread = max(picks.values()) - min(picks.values()) if picks else None
    pairs = table.corr().to_numpy()[np.triu_indices(len(picks), 1)] if len(picks) > 1 else []
    known = [float(value) for value in pairs if np.isfinite(value)]
    return {
        "picks": picks,
        "spread": spread,
        "correlation": round(float(np.mean(known)), 4) if known else None,
    }


def _choices(
    evidence: Evidence, modality: Modality, weights: Float[np.ndarray, "draw example"]
) -> tuple[dict[str, Choice], dict[str, str]]:
    """What each rule chooses; and by name, why others choose nothing."""
    found: dict[str, Choice] = {}
    votes: dict[str, Draws] = {}
    skipped: dict[str, str] = {}
    for name, rule in RULES.items():
        needs = rule.curves.get(modality, ())
        missing = [curve for curve in needs if not _known(evidence, curve)]
        if not needs or missing:
            skipped[name] = f"{name} of {modality} left out: {_reason(evidence, missing)}"
            continue
        scores = rule.score(*(weighted_means(evidence.curves[c], weights) for c in needs))
        if not np.nanmax(scores[0], initial=0) > 0:
            skipped[name] = f"{name} of {modality} left out: nothing speaks for any layer"
            continue
        counts = (int(np.isfinite(evidence.curves[c]).any(1).sum()) for c in needs)
        found[name] = chosen(scores, min(counts))
        if rule.votes:
            votes[name] = scores
    if votes:
        combined, rule_weights = consensus(votes)
        examples = min(found[name].examples for name in votes)
        found["consensus"] = chosen(combined, examples, rule_weights)
    else:
        skipped["consensus"] = f"consensus of {modality} left out: no rule has a say"
    return found, skipped


def _known(evidence: Evidence, curve: str) -> bool:
    values = evidence.curves.get(curve)
    return values is not None and bool(np.isfinite(values).any())


def _reason(evidence: Evidence, missing: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(_missing(evidence, missing))) or "it says nothing about it"


def _missing(evidence: Evidence, curves: Iterable[str]) -> Iterator[str]:
    for curve in curves:
        if curve in evidence.curves:
            yield f"{curve!r} has no value (for patching: the same answer to every pair)"
        else:
            yield f"no evidence {curve!r}, which `{command_for(curve)}` makes"


def _without_rounding(scores: Draws) -> Draws:
    """Scores in which what differs by rounding alone is equal."""
    size = np.nanmax(np.nan_to_num(np.abs(scores)), axis=1, keepdims=True)
    size = np.where(size > 0, size, 1.0)
    return np.round(scores / size, DIGITS) * size


def _winners(scores: Draws) -> Bool[np.ndarray, "draw layer"]:
    known = np.nan_to_num(scores, nan=-np.inf)
    top = known.max(1, keepdims=True)
    return (known == top) & np.isfinite(top)


def _meanings() -> dict[str, str]:
    return {name: rule.description for name, rule in RULES.items()} | {"consensus": CONSENSUS}
