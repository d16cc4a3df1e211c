"""What a selection of layers says, and how sure it is, in sentences that are computed."""

import pandas as pd

from attrib.selection import CONSENSUS_RULES, Choice, LayerReport, fixed_picks

WHERE = {"visual": "the visual tokens", "text": "the words"}
UNCLEAR = 0.5  # chosen in fewer draws than this, a layer is one of several
NAMED = 0.1  # shares of draws below this are not worth a name


def summarize_selection(report: LayerReport) -> str:
    """One paragraph per modality, and one about the rules that could not be computed."""
    parts = [_about(report, modality) for modality in ("visual", "text")]
    return "\n".join([*parts, *(f"({line}.)" for line in report.left_out)])


def summarize_regret(judged: pd.DataFrame, rule: str) -> str:
    """What the rule's pick costs against the best cell of a grid, and what fixed picks cost."""
    rows = {row["pick"]: row for row in judged.to_dict("records")}
    if rule not in rows:
        return f"{rule} has no layer for both modalities: it cannot be judged by the grid."
    own = rows[rule]
    if own["score"] != own["score"]:
        return f"The grid lacks the cell (text {own['text']}, visual {own['visual']}) of {rule}."
    fixed = "; ".join(
        f"{name} {_regret(rows[name]['regret'])}" for name in fixed_picks(2) if name in rows
    )
    return (
        f"On the grid, {rule} (text {own['text']}, visual {own['visual']}) scores "
        f"{own['score']:.2f}, the best cell (text {own['best_text']}, visual "
        f"{own['best_visual']}) {own['best']:.2f}: regret {own['regret']:.2f} ({own['seeds']} "
        f"seed(s), {own['low']:.2f} to {own['high']:.2f}). Regret of the fixed choices: {fixed}."
    )


def _regret(value: float) -> str:
    return f"{value:.2f}" if value == value else "not in the grid"


def _about(report: LayerReport, modality: str) -> str:
    layers, choice = report.layers[modality], report.choices[modality].get(report.rule)
    if choice is None or not layers:
        return f"No layer can be selected for {WHERE[modality]}."
    others = f" (then {', '.join(map(str, layers[1:]))})" if len(layers) > 1 else ""
    return " ".join([
        f"Edit {WHERE[modality]} at the output of layer {choice.layer}{others}, by {report.rule}.",
        _how_sure(choice),
        _rules(report, modality),
    ]).strip()  # fmt: skip


def _how_sure(choice: Choice) -> str:
    if choice.examples < 2:
        return "This is one example: nothing is known about others."
    sure = (
        f"With other examples (of {choice.examples}) the same layer would be chosen in "
        f"{choice.share:.0%} of the cases (95% interval: layer {choice.low} to {choice.high})."
    )
    if choice.share >= UNCLEAR:
        return sure
    near = [layer for layer in choice.ranking if choice.shares[layer] >= NAMED]
    shares = ", ".join(f"{layer} ({choice.shares[layer]:.0%})" for layer in near)
    return f"{sure} That is no clear choice: {shares or 'no layer stands out'}."


def _rules(report: LayerReport, modality: str) -> str:
    """What the voting rules say alone; the bootstrap says nothing about whether they are right."""
    choices, agreement = report.choices[modality], report.agreement[modality]
    voters = [name for name in CONSENSUS_RULES if name in choices]
    if len(voters) < 2:
        return ""
    alone = ", ".join(f"{name} {choices[name].layer}" for name in voters)
    apart = agreement["spread"]
    verdict = "they agree" if apart <= 1 else f"they are up to {apart} layers apart"
    return f"The rules alone say {alone}: {verdict}."
