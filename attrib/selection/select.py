"""Layers to edit: every rule applied to the evidence, with bootstrap confidence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from attrib.errors import AttribError
from attrib.results import Result
from attrib.selection.evidence import Evidence, command_for, gather
from attrib.selection.report import Choice, LayerReport
from attrib.selection.rules import CONSENSUS, CONSENSUS_RULES, RULES, Draws, consensus
from attrib.stats import RESAMPLES, bootstrap_weights, weighted_means
from attrib.vocabulary import MODALITIES, Modality, RuleName

ENDS = (0.025, 0.975)
DIGITS = 10
LAYERS_BY_WORD = "layers by word"  # in a report's provenance


def select_layers(
    results: Iterable[Result] | Mapping[str, Result],
    rule: RuleName = "consensus",
    *,
    number: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LayerReport:
    """Select the layers to edit, per modality.

    Args:
        results: of one model on one dataset: "contributions", "sweep" of text and of visual
            tokens, "patching"; "attention" and "faithfulness" add evidence without a vote.
        rule: the rule that chooses; all rules that can be computed are reported.
        number: layers per modality, best first.
        resamples: bootstrap draws of examples, the same for all results.
        seed: of the draws.

    Raises:
        AttribError: No result has evidence, results are of different models or data, or the rule
            cannot be computed for any modality.
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
        left_out += [why for name, why in skipped.items() if name in (rule, *CONSENSUS_RULES)]
    if not any(rule in by_rule for by_rule in choices.values()):
        raise AttribError(f"no layer can be selected by {rule}: {'; '.join(left_out)}")
    layers = {
        m: choices[m][rule].ranking[:number] if rule in choices[m] else [] for m in MODALITIES
    }
    agreement = {m: agreement_of(choices[m]) for m in MODALITIES}
    meanings = {name: one.description for name, one in RULES.items()} | {"consensus": CONSENSUS}
    provenance = {**evidence.provenance, "seed": seed, "resamples": resamples}
    return LayerReport(
        layers, rule, choices, agreement, left_out, evidence.num_layers, meanings, provenance
    )


def combine_words(reports: Sequence[LayerReport]) -> LayerReport:
    """Per modality, the report with the earliest layer among reports about different answer words.

    An edit at a layer reaches only later layers, and the words of an answer are read at different
    depths: an edit early enough for the earliest word also serves the others.

    Args:
        reports: Of one model by one rule, each about another word of the answers.

    Returns:
        A report whose provenance has the layers of each word.

    Raises:
        AttribError: There is no report.
    """
    if not reports:
        raise AttribError("no report of any answer word: give one or more")
    first = reports[0]
    if len(reports) == 1:
        return first
    own = {
        m: min((one for one in reports if one.layers[m]), key=lambda one: min(one.layers[m]),
               default=first)
        for m in MODALITIES
    }  # fmt: skip
    return replace(
        first,
        layers={m: one.layers[m] for m, one in own.items()},
        choices={m: one.choices[m] for m, one in own.items()},
        agreement={m: one.agreement[m] for m, one in own.items()},
        left_out=list(dict.fromkeys(line for one in reports for line in one.left_out)),
        provenance={**first.provenance, LAYERS_BY_WORD: [dict(one.layers) for one in reports]},
    )


def choose(
    scores: Draws,
    examples: int,
    weights: Mapping[str, float] | None = None,
    *,
    latest: bool = False,
) -> Choice:
    """The best layer of the first draw, and how often the other draws agree.

    Layers with equal highest scores share their draw equally.

    Args:
        scores: By draw and layer; the first draw is the data itself.
        examples: Their number.
        weights: Of the voting rules.
        latest: Choose the latest of the layers within one standard error of the best (the rule of
            Breiman et al., 1984, for the simplest of equal models). Samples do not tell these
            layers apart, and the latest is the cheapest to train at.
    """
    scores = _without_rounding(scores)
    drawn = scores[1:] if len(scores) > 1 and examples > 1 else scores[:1]
    first, winners = _winners(scores[:1]), _winners(drawn)
    if latest and len(drawn) > 1:
        error = drawn[:, first[0].argmax()].std()
        first, winners = (_latest(some, error) for some in (scores[:1], drawn))
    winners = winners[winners.any(1)]
    split = winners / winners.sum(1, keepdims=True)
    shares = split.mean(0) if len(split) else first[0] / first.sum()
    low, high = (int(np.searchsorted(np.cumsum(shares), end - 1e-9)) for end in ENDS)
    known = tuple(float(s) if np.isfinite(s) else None for s in scores[0])
    layer = int(first[0].argmax())
    return Choice(layer, known, tuple(map(float, shares)), low, high, examples, dict(weights or {}))


def agreement_of(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """How far the voting rules are apart.

    Returns:
        `picks`: the layer of each rule; `spread`: highest minus lowest of them, None without a
        rule; `correlation`: mean rank correlation of their scores over layers, None with fewer than
        two rules.
    """
    voters = {name: choices[name] for name in CONSENSUS_RULES if name in choices}
    picks = {name: choice.layer for name, choice in voters.items()}
    table = pd.DataFrame({n: pd.Series(c.scores, dtype=float).rank() for n, c in voters.items()})
    pairs = table.corr().to_numpy()[np.triu_indices(len(picks), 1)] if len(picks) > 1 else []
    known = [float(value) for value in pairs if np.isfinite(value)]
    return {
        "picks": picks,
        "spread": max(picks.values()) - min(picks.values()) if picks else None,
        "correlation": round(float(np.mean(known)), 4) if known else None,
    }


def _choices(
    evidence: Evidence, modality: Modality, weights: Float[np.ndarray, "draw example"]
) -> tuple[dict[str, Choice], dict[str, str]]:
    """The choice of each rule; and by name, why other rules were skipped."""
    found: dict[str, Choice] = {}
    votes: dict[str, Draws] = {}
    skipped: dict[str, str] = {}
    for name, rule in RULES.items():
        needed = rule.curves.get(modality, ())
        curves = [evidence.curves.get(curve) for curve in needed]
        missing = [
            curve for curve, values in zip(needed, curves, strict=True)
            if values is None or not np.isfinite(values).any()
        ]  # fmt: skip
        if not needed or missing:
            skipped[name] = f"{name} of {modality} left out: {_reason(evidence, missing)}"
            continue
        known = [values for values in curves if values is not None]
        means = [weighted_means(values, weights) for values in known]
        scores = rule.score(*means)
        if not np.nanmax(scores[0], initial=0) > 0:
            skipped[name] = f"{name} of {modality} left out: no layer has a positive score"
            continue
        examples = min(int(np.isfinite(values).any(1).sum()) for values in known)
        found[name] = choose(scores, examples)
        if rule.vote is not None:
            votes[name] = rule.vote(*means)
    if votes:
        combined, rule_weights = consensus(votes)
        examples = min(found[name].examples for name in votes)
        found["consensus"] = choose(combined, examples, rule_weights, latest=True)
    else:
        skipped["consensus"] = f"consensus of {modality} left out: no voting rule is available"
    return found, skipped


def _reason(evidence: Evidence, missing: Iterable[str]) -> str:
    reasons = [
        f"{curve!r} has no value (for patching: the same answer in every pair)"
        if curve in evidence.curves
        else f"no evidence {curve!r}, run `{command_for(curve)}`"
        for curve in missing
    ]
    return "; ".join(dict.fromkeys(reasons)) or "it does not apply to this modality"


def _without_rounding(scores: Draws) -> Draws:
    """Scores in which differences by rounding alone are removed."""
    size = np.nanmax(np.nan_to_num(np.abs(scores)), axis=1, keepdims=True)
    size = np.where(size > 0, size, 1.0)
    return np.round(scores / size, DIGITS) * size


def _latest(scores: Draws, error: float) -> Bool[np.ndarray, "draw layer"]:
    """Of each draw, the latest layer whose score is within `error` of the highest."""
    known = np.nan_to_num(scores, nan=-np.inf)
    near = known >= known.max(1, keepdims=True) - error
    last = near.shape[1] - 1 - near[:, ::-1].argmax(1)
    return np.isfinite(known) & (np.arange(near.shape[1]) == last[:, None])


def _winners(scores: Draws) -> Bool[np.ndarray, "draw layer"]:
    known = np.nan_to_num(scores, nan=-np.inf)
    top = known.max(1, keepdims=True)
    return (known == top) & np.isfinite(top)
