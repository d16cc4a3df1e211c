"""What results say, in plain sentences that are computed and never written ahead."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.analyses.contributions import MODULES
from attrib.results import Result
from attrib.stats import bootstrap_means

CLEARLY_SMALLER = 0.5  # a control that keeps more than half of the effect controls nothing


def about_contributions(result: Result, what: str = "the key token") -> str:
    """Where the key token is written, in one sentence."""
    values = _per_layer(result)
    curve = np.nanmean(values, axis=0)
    if not (curve > 0).any():
        return (
            f"In {_model(result)} no layer speaks for {what}: every mean contribution is negative."
        )
    peak, half = int(np.argmax(curve)), len(curve) // 2
    low, high = _late_interval(values, half, result.seed)
    when = "late" if low > 0.5 else "early" if high < 0.5 else "early and late alike"
    share = _late_share(curve[None], half)[0]
    return (
        f"{_model(result)} writes {what} {when}: {share:.0%} of what speaks for it comes from "
        f"layers {half} to {len(curve) - 1}, most of all from layer {peak}."
    )


def how_sure(result: Result) -> str:
    """How much of `about_contributions` would be the same with other examples."""
    values = _per_layer(result)
    if len(values) == 1:
        return "This is one example: nothing is known about others."
    half, peak = values.shape[1] // 2, np.nanmean(values, axis=0).argmax()
    low, high = _late_interval(values, half, result.seed)
    often = (bootstrap_means(values, seed=result.seed).argmax(1) == peak).mean()
    return (
        f"With other examples the share would be {low:.0%} to {high:.0%} (95% bootstrap interval), "
        f"and layer {peak} would be the highest in {often:.0%} of the cases."
    )


def finding(right: Result, wrong: Result) -> str:
    """What was found, in one or two sentences; the second takes it back where the control fails."""
    sentence = about_contributions(right, "the answer")
    if (control := _control(right, wrong)) is None or control.high < CLEARLY_SMALLER:
        return sentence
    return f"{sentence} But a wrong answer gets nearly as much: do not build on this."


def about_control(right: Result, wrong: Result) -> str:
    """How much of the contributions is left with a wrong key (VisEdit, Fig. 6)."""
    control = _control(right, wrong)
    if control is None:
        return "No example has a wrong answer to compare with."
    verdict = (
        "so the curve is about this answer, not about answers in general"
        if control.high < CLEARLY_SMALLER
        else "which is no clear difference: the curve says little about this very answer"
    )
    return (
        "With the answer to an unrelated question as the key, contributions are "
        f"{control.ratio:.0%} as large (95% interval {control.low:.0%} to {control.high:.0%}, "
        f"{control.examples} examples), {verdict}."
    )


def about_attention(result: Result) -> str:
    """Where the image is looked at, and how text compares with visual tokens."""
    means = result.mean(["statistic", "layer"]).set_index(["statistic", "layer"])["mean"].unstack()
    visual = means.loc["visual_sum"]
    if visual.isna().all():
        return "The prompts have no visual tokens."
    text_ahead = means.loc["text_mean"] > means.loc["visual_mean"]
    return (
        f"The last prompt token gives the image most attention in layer {visual.idxmax()} "
        f"({visual.max():.0%} of the whole) and least in layer {visual.idxmin()} "
        f"({visual.min():.0%}). Token by token, text gets more than the image in "
        f"{text_ahead.sum()} of {len(text_ahead)} layers."
    )


def about_answers(answers: Result) -> str:
    """How many prompts are answered right."""
    right = int(np.sum(answers.frame["value"]))
    return (
        f"The model answers {right} of {answers.examples} prompts right (greedy decoding, "
        "exact match)."
    )


class _Control(NamedTuple):
    ratio: float
    low: float
    high: float
    examples: int


def _control(right: Result, wrong: Result) -> _Control | None:
    """Size of the contributions with a wrong key over that with the right one, same examples."""
    pairs = pd.DataFrame({"right": _sizes(right), "wrong": _sizes(wrong)}).dropna()
    if pairs.empty:
        return None
    values = pairs.to_numpy()
    ratio = values[:, 1].mean() / values[:, 0].mean()
    draws = bootstrap_means(values, seed=right.seed)
    low, high = np.nanpercentile(draws[:, 1] / draws[:, 0], [2.5, 97.5])
    return _Control(float(ratio), float(low), float(high), len(pairs))


def _per_layer(result: Result) -> Float[np.ndarray, "example layer"]:
    """Attention's and MLP's contributions of a layer together."""
    groups, values = result.matrix(["layer", "module"])
    modules = [values[:, np.asarray(groups["module"] == module)] for module in MODULES]
    return sum(modules[1:], start=modules[0])


def _late_interval(
    values: Float[np.ndarray, "example layer"], half: int, seed: int
) -> tuple[float, float]:
    low, high = np.nanpercentile(_late_share(bootstrap_means(values, seed=seed), half), [2.5, 97.5])
    return float(low), float(high)


def _model(result: Result) -> str:
    return str(result.provenance.get("model", {}).get("name", "The model"))


def _late_share(curves: Float[np.ndarray, "curve layer"], half: int) -> Float[np.ndarray, " curve"]:
    # What speaks against the token is left out: shares of a sum with both signs are no shares.
    positive = np.clip(curves, 0, None)
    return positive[:, half:].sum(1) / positive.sum(1)


def _sizes(result: Result) -> pd.Series:
    """Mean size of an example's contributions, by example."""
    sizes = np.abs(np.asarray(result.frame["value"]))
    table = pd.DataFrame({"example": result.frame["example"], "size": sizes})
    return pd.Series(table.groupby("example")["size"].mean())
