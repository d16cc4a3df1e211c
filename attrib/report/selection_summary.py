"""Summaries of a selection of layers: the choice, its confidence, its reasons, its regret."""

from collections.abc import Iterator, Mapping
from typing import Any

from attrib.report.summaries import ONE_EXAMPLE, percent
from attrib.selection import CONSENSUS_RULES, Choice, GridEvaluation, LayerReport, fixed_picks
from attrib.selection.accuracy import ACCURACY
from attrib.selection.select import LAYERS_BY_WORD

TOKENS = {"visual": "the visual tokens", "text": "the text tokens"}
STABLE, UNCLEAR = 0.9, 0.5  # shares of bootstrap samples that choose the same layer
LISTED = 0.1  # smallest share of bootstrap samples at which another layer is named
AGREE = 1  # largest distance, in layers, of rules that agree
CONSENSUS = (
    "Each rule scores layers by other evidence, shown below. The consensus multiplies the scores: "
    "it chooses a layer that scores well under every rule. Rules are weighted by how consistent "
    "their scores are across samples."
)


def summarize_selection(report: LayerReport) -> str:
    """A line per modality, per rule that could not be computed, and per answer word if several."""
    words = [
        f"Word {number} of the answer: "
        + ", ".join(f"{m} {', '.join(map(str, some)) or 'none'}" for m, some in layers.items())
        for number, layers in enumerate(report.provenance.get(LAYERS_BY_WORD, ()), 1)
    ]
    earliest = ["The earliest layer of all words is selected."] if words else []
    lines = [_modality(report, modality) for modality in TOKENS]
    return "\n".join([*words, *earliest, *lines, *(f"({line}.)" for line in report.left_out)])


def summarize_regret(evaluation: GridEvaluation, rule: str) -> str:
    """Score and regret of the rule's layers on a grid of trained editors, and of fixed choices."""
    tables = evaluation.regret
    kinds = ["both"] if "both" in tables else list(tables)
    return " ".join(_regret(evaluation, kind, rule) for kind in kinds)


def headline(report: LayerReport) -> str:
    """The chosen layers in one sentence."""
    chosen = {TOKENS[m]: layers for m, layers in report.layers.items() if layers}
    places = " and ".join(f"{name} at layer {_listed(some)}" for name, some in chosen.items())
    sentence = f"Edit {model_of(report)}: {places}."
    first, *others = chosen.values()
    if others and others[0] == first:
        sentence = f"Edit {model_of(report)} at layer {_listed(first)}, for {' and '.join(chosen)}."
    none = [TOKENS[m] for m, layers in report.layers.items() if not layers]
    return f"{sentence} No layer can be chosen for {' or '.join(none)}." if none else sentence


def confidence(report: LayerReport) -> str:
    """Stability of the choice over bootstrap samples, and agreement of the rules."""
    chosen = [rules[report.rule] for rules in report.choices.values() if report.rule in rules]
    share = min((choice.share for choice in chosen), default=0.0)
    agree = f"{percent(share)} of bootstrap samples choose the same layers."
    if any(choice.examples < 2 for choice in chosen):
        stability = ONE_EXAMPLE
    elif share >= STABLE:
        stability = f"The choice is stable: {agree}"
    elif share >= UNCLEAR:
        stability = f"The choice is moderately stable: {agree}"
    else:
        stability = f"The choice is unclear: only {agree}"
    spreads = {m: a["spread"] for m, a in report.agreement.items() if len(a["picks"]) > 1}
    far = [f"{gap} layers for {TOKENS[m]}" for m, gap in spreads.items() if gap > AGREE]
    if not spreads:
        return f"{stability} Only one rule could be computed, so nothing checks it."
    if not far:
        return f"{stability} Individual rules agree."
    return f"{stability} Individual rules disagree by up to {' and '.join(far)}."


def accuracy(report: LayerReport) -> str:
    """The model's accuracy on the samples, with a warning if it is low; "" if it is unknown."""
    found = report.provenance.get(ACCURACY)
    if not found:
        return ""
    return (
        f"The model gives the right answer to {answered(found)} (whole answers, teacher-forced). "
        + (f"Warning: {found['warning']}" if found["warning"] else "")
    ).strip()


def _left_out(report: LayerReport, used: int) -> str:
    """Why fewer examples select than were answered, if it is so."""
    missing = (report.provenance.get(ACCURACY) or {}).get("examples", 0) - used
    if missing <= 0:
        return ""
    return f" ({missing} more lack a number: pairs of images with one answer have no patching)"


def low_accuracy(report: LayerReport) -> str:
    """A short warning where most answers are wrong, else ""."""
    found = report.provenance.get(ACCURACY) or {"warning": ""}
    return f"warning: right answers to only {answered(found)}" if found["warning"] else ""


def answered(accuracy: Mapping[str, Any]) -> str:
    """The number and share of right answers, with its interval."""
    low, high = accuracy["low"], accuracy["high"]
    return (
        f"{accuracy['right']} of {accuracy['examples']} prompts: {percent(accuracy['share'])}, "
        f"95 % CI {percent(low, high)}"
    )


def rationale(report: LayerReport) -> Iterator[str]:
    """Per modality, why the chosen layer has the highest score."""
    if report.rule == "consensus":
        yield CONSENSUS
    for modality, layers in report.layers.items():
        if layers:
            choices = report.choices[modality]
            voters = [rule for rule in CONSENSUS_RULES if rule in choices]
            if report.rule == "consensus" and len(voters) > 1:
                yield _shares_of_rules(TOKENS[modality], choices, voters)
            else:
                only = voters[0] if report.rule == "consensus" else report.rule
                yield (
                    f"For {TOKENS[modality]}, layer {layers[0]} has the highest score of {only}: "
                    f"{report.meanings[only]}."
                )


def model_of(report: LayerReport) -> str:
    """The name of the model."""
    return str(report.model.get("name") or "the model")


def _modality(report: LayerReport, modality: str) -> str:
    layers, choice = report.layers[modality], report.choices[modality].get(report.rule)
    if choice is None or not layers:
        return f"No layer can be selected for {TOKENS[modality]}."
    sentences = [
        f"Edit {TOKENS[modality]} at the output of layer {_listed(layers)}, selected by "
        f"{report.rule} from {choice.examples} example{'s' * (choice.examples != 1)}"
        f"{_left_out(report, choice.examples)}.",
        _stability(choice),
    ]
    found = report.agreement[modality]
    if len(found["picks"]) > 1:
        apart = found["spread"] > AGREE
        verb = f"disagree by up to {found['spread']} layers" if apart else "agree"
        picks = ", ".join(f"{rule} {layer}" for rule, layer in found["picks"].items())
        correlation = found["correlation"]
        more = (
            "" if correlation is None else f"; rank correlation of their scores {correlation:z.2f}"
        )
        sentences.append(f"Individual rules {verb}: {picks}{more}.")
    return " ".join(sentences)


def _stability(choice: Choice) -> str:
    if choice.examples < 2:
        return ONE_EXAMPLE
    ends = f"layers {choice.low}-{choice.high}" if choice.low < choice.high else "this layer"
    sentence = f"{percent(choice.share)} of bootstrap samples select the same layer (95 %: {ends})."
    if choice.share >= UNCLEAR:
        return sentence
    near = [layer for layer in choice.ranking if choice.shares[layer] >= LISTED]
    shares = ", ".join(f"{layer} ({percent(choice.shares[layer])})" for layer in near)
    return f"{sentence} No clear choice: layers {shares or 'with small shares only'}."


def _shares_of_rules(tokens: str, choices: Mapping[str, Choice], voters: list[str]) -> str:
    own, ranking = choices["consensus"].layer, choices["consensus"].ranking
    first = [rule for rule in voters if choices[rule].layer == own]
    place = (
        f"is first under {' and '.join(first)} and scores well under the other rules"
        if first
        else "is first under no single rule but scores well under all"
    )
    sentence = f"For {tokens}, layer {own} {place}: it has {_shares(choices, voters, own)}."
    if len(ranking) < 2:
        return sentence
    return (
        f"{sentence} The runner-up, layer {ranking[1]}, has {_shares(choices, voters, ranking[1])}."
    )


def _shares(choices: Mapping[str, Choice], voters: list[str], layer: int) -> str:
    """A layer's share of the highest score of each rule."""
    parts = []
    for rule in voters:
        scores = [score for score in choices[rule].scores if score is not None]
        share = max(0.0, choices[rule].scores[layer] or 0.0) / max(scores)
        parts.append(f"{percent(share)} of {rule}'s{'' if parts else ' highest score'}")
    return ", ".join(parts)


def _regret(evaluation: GridEvaluation, kind: str, rule: str) -> str:
    rows = {row["pick"]: row for row in evaluation.regret[kind].to_dict("records")}
    where = "" if kind == "both" else f" ({kind})"
    if rule not in rows:
        return f"{rule} has no layer for both modalities, so the grid cannot evaluate it{where}."
    own = rows[rule]
    if own["regret"] != own["regret"]:
        return f"The grid has no editor at the layers of {rule}, {_cell(own, '')}{where}."
    seeds = f"{own['seeds']} seed{'s' * (own['seeds'] != 1)}, {own['low']:.2f}-{own['high']:.2f}"
    fixed = "; ".join(
        f"{name} {rows[name]['regret']:.2f}" if rows[name]["regret"] == rows[name]["regret"]
        else f"{name} not in the grid"
        for name in fixed_picks(2) if name in rows
    )  # fmt: skip
    return (
        f"Editors at the layers of {rule}, {_cell(own, '')}, score {own['score']:.2f}{where}; the "
        f"best of {evaluation.cells[kind]} cells, {_cell(own, 'best_')}, scores {own['best']:.2f}: "
        f"regret {own['regret']:.2f} ({seeds}). Regret of fixed choices: {fixed}."
    )


def _cell(row: Mapping[str, object], prefix: str) -> str:
    layers = {m: row[f"{prefix}{m}"] for m in ("text", "visual")}
    known = {m: layer for m, layer in layers.items() if layer is not None and layer == layer}
    return ", ".join(f"{m} {layer:.0f}" for m, layer in known.items())


def _listed(layers: list[int]) -> str:
    first, *others = map(str, layers)
    return f"{first} (then {', '.join(others)})" if others else first
