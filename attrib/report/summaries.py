"""Summaries of analyses in plain sentences. Every number is computed from the results given."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from attrib.analyses.direct_logits import MODULES
from attrib.analyses.gate_roc import ANY, PUBLISHED_THRESHOLD, best_layer, overall
from attrib.analyses.gating import LEAKING, TOKENS
from attrib.results import Result
from attrib.stats import bootstrap_means, interval, wilson

SPECIFIC = 0.5  # a control above that is no control
ONE_EXAMPLE = "One example: no confidence interval."
STATES = {
    "visual_mean": "the mean of the visual tokens",
    "text_mean": "the mean of the text tokens",
    "prompt_last": "the last prompt token",
    "target_last": "the last target token",
}


def summarize_contributions(result: Result, target: str = "the key token") -> str:
    """The share of the contribution to the target token by depth, and the layer of the peak."""
    said = contribution_share(result, target), contribution_peak(result), soft_cap(result)
    return " ".join(filter(None, said))


def contribution_share(result: Result, target: str) -> str:
    """The half of the layers with more of the contribution to the target token, and its share."""
    values = _per_layer(result)
    curve = np.nanmean(values, axis=0)
    if not (curve > 0).any():
        return f"{model_name(result)}: no layer contributes to {target} (all means are negative)."
    num, half = len(curve), len(curve) // 2
    late = _late_share(curve[None], half)[0] >= 0.5
    shares = _late_share(np.stack([curve, *bootstrap_means(values, seed=result.seed)]), half)
    shares = shares if late else 1 - shares
    ends = f" (95 % CI {percent(*interval(shares[1:]))})" if len(values) > 1 else ""
    return (
        f"{model_name(result)}: {percent(shares[0])} of the contribution to {target} comes from "
        f"layers {f'{half}-{num - 1}' if late else f'0-{half - 1}'}{ends}."
    )


def contribution_peak(result: Result) -> str:
    """The layer with the highest contribution; empty if no contribution is positive."""
    values = _per_layer(result)
    peak = int(np.argmax(curve := np.nanmean(values, axis=0)))
    if not curve[peak] > 0:
        return ""
    return f"The contribution is highest in layer {peak}{stability(values, peak, result.seed)}."


def soft_cap(result: Result) -> str:
    """Which logit is decomposed, where the model caps its logits; else empty."""
    cap = result.provenance.get("model", {}).get("soft_cap")
    if cap is None:
        return ""
    return f"Contributions are of the logit before the model's soft-cap of {cap:g}."


def summarize_demo(right: Result, wrong: Result) -> str:
    """The headline of the demo report, with a warning where the control fails."""
    sentence = f"{contribution_share(right, 'the answer token')} {soft_cap(right)}".strip()
    control = _control(right, wrong)
    if control is None or control[2] < SPECIFIC:
        return sentence
    return f"{sentence} A wrong answer receives nearly as much, so do not rely on this curve."


def summarize_control(right: Result, wrong: Result) -> str:
    """How much contribution a wrong key token receives (VisEdit, Fig. 6)."""
    control = _control(right, wrong)
    if control is None:
        return "Control: no example has a wrong answer to compare with."
    ratio, low, high, n = control
    return (
        f"Control: the answer to an unrelated question receives {percent(ratio)} of the "
        f"contribution (95 % CI {percent(low, high)}, {n} examples), so the curve is "
        f"{'' if high < SPECIFIC else 'not '}specific to this answer."
    )


def summarize_attention(result: Result) -> str:
    """The layers that attend most and least to the image; text against visual tokens."""
    means = result.mean(["statistic", "layer"]).set_index(["statistic", "layer"])["mean"].unstack()
    visual = means.loc["visual_sum"]
    if visual.isna().all():
        return "The prompts have no visual tokens."
    text_ahead = means.loc["text_mean"] > means.loc["visual_mean"]
    return (
        f"The last prompt token attends most to the image in layer {visual.idxmax()} "
        f"({percent(visual.max())} of its attention) and least in layer {visual.idxmin()} "
        f"({percent(visual.min())}). An average text token receives more attention than an "
        f"average visual token in {text_ahead.sum()} of {len(text_ahead)} layers."
    )


def summarize_answers(answers: Result) -> str:
    """How many prompts the model answers correctly."""
    right, n = int(np.sum(answers.frame["value"])), answers.examples
    return (
        f"The model answers {right} of {n} prompts correctly (95 % CI {percent(*wilson(right, n))};"
        " greedy decoding, exact match)."
    )


def summarize_gate(
    result: Result, table: pd.DataFrame, token: str, layer: int | None = None
) -> str:
    """How well a gate on `token` separates edits from the rest, at its best layer or a given one.

    Args:
        result: the similarities.
        table: ROC statistics of them, from `attrib.analyses.gate_roc`.
        token: the state that the gate compares.
        layer: the layer; by default that with the highest AUC against all locality inputs.
    """
    chosen = best_layer(table, token) if layer is None else layer
    cell = table.loc[(table["token"] == token) & (table["layer"] == chosen)]
    whole = _rows(overall(table, token).query("layer == @chosen"))[0]
    sentences = [
        f"{model_name(result)}: a gate on {STATES[token]} of layer {chosen} separates generality "
        f"from locality inputs with ROC-AUC {_estimate(whole, 'auc')} (n = {whole['n']}).",
        _hardest(cell),
        f"A threshold of {_estimate(whole, 'threshold', 3)} opens the gate for "
        f"{_rate(whole, 'true_open')} of generality and {_rate(whole, 'false_open')} of locality "
        f"inputs; DualEdit's fixed {PUBLISHED_THRESHOLD} for "
        f"{percent(whole['published_true_open'])} and {percent(whole['published_false_open'])}.",
        f"{'Threshold and layer' if layer is None else 'The threshold'} tuned on these "
        f"{result.examples} examples; validate on held-out data.",
        _leak(table, token),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def gate_auc_table(table: pd.DataFrame, layer: int) -> str:
    """ROC-AUC of every token against every kind of locality at one layer, as plain columns."""
    cell = table.loc[table["layer"] == layer]
    wide = cell.pivot_table("auc", "relation", "token", dropna=False)
    wide = wide[[token for token in TOKENS if token in wide]]
    wide = wide.rename(columns={LEAKING: f"{LEAKING} (leaks)"}).rename_axis(None, axis=1)
    kinds = sorted(map(str, wide.index), key=lambda kind: (kind == ANY, kind))
    shown = wide.loc[kinds].rename_axis(f"ROC-AUC, layer {layer}")
    return shown.to_string(float_format="{:.3f}".format, na_rep="-")


def percent(*shares: float) -> str:
    """One share as "75 %", or the two ends of an interval as "66-85 %"."""
    return f"{'-'.join(dict.fromkeys(f'{100 * share:.0f}' for share in shares))} %"


def model_name(result: Result) -> str:
    """The name under which the model was loaded."""
    return str(result.provenance.get("model", {}).get("name", "The model"))


def _late_share(curves: Float[np.ndarray, "curve layer"], half: int) -> Float[np.ndarray, " curve"]:
    # Negative contributions are left out: shares of a sum with both signs are no shares.
    positive = np.clip(curves, 0, None)
    return positive[:, half:].sum(1) / positive.sum(1)


def stability(values: Float[np.ndarray, "example layer"], top: int, seed: int) -> str:
    """In how many bootstrap samples the group at `top` is the highest, in brackets."""
    if len(values) == 1:
        return " (one example: no confidence interval)"
    often = (np.nan_to_num(bootstrap_means(values, seed=seed)).argmax(1) == top).mean()
    return f" (in {percent(often)} of bootstrap samples)"


def _control(right: Result, wrong: Result) -> tuple[float, float, float, int] | None:
    """Size of the contributions of a wrong key over those of the right one, its CI, and n."""
    pairs = pd.DataFrame({"right": _sizes(right), "wrong": _sizes(wrong)}).dropna()
    if not len(values := pairs.to_numpy()):
        return None
    draws = bootstrap_means(values, seed=right.seed)
    low, high = interval(draws[:, 1] / draws[:, 0])
    ratio = values[:, 1].mean() / values[:, 0].mean()
    return float(ratio), float(low), float(high), len(pairs)


def _sizes(result: Result) -> pd.Series:
    """Mean absolute contribution of each example."""
    return pd.Series(result.frame["value"].abs().groupby(result.frame["example"]).mean())


def _per_layer(result: Result) -> Float[np.ndarray, "example layer"]:
    """Contributions of a layer's attention and MLP together."""
    groups, values = result.matrix(["layer", "module"])
    return np.sum([values[:, np.asarray(groups["module"] == m)] for m in MODULES], axis=0)


def _hardest(cell: pd.DataFrame) -> str:
    kinds = [row for row in _rows(cell) if row["relation"] != ANY and np.isfinite(row["auc"])]
    if len(kinds) < 2:
        return ""
    worst = min(kinds, key=lambda row: row["auc"])
    return f"Hardest: {worst['relation']}, AUC {_estimate(worst, 'auc')}."


def _leak(table: pd.DataFrame, token: str) -> str:
    if token == LEAKING:
        return "This token leaks the gold answer, which a deployed gate does not have."
    rows = overall(table, LEAKING)
    if not np.isfinite(rows["auc"]).any():
        return ""
    return (
        f"{STATES[LEAKING].capitalize()}, which leaks the gold answer (DualEdit's published code "
        f"compares it), reaches AUC {rows['auc'].max():.2f}."
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _estimate(row: dict[str, Any], name: str, digits: int = 2) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.{digits}f} (95 % CI {low:.{digits}f}-{high:.{digits}f})"


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{percent(row[name])} (95 % CI {percent(row[f'{name}_low'], row[f'{name}_high'])})"
