"""Why the chosen layers, in sentences that are computed from the rules' scores."""

from collections.abc import Iterator, Mapping

from attrib.report.layer_study import LayerStudy
from attrib.report.selection_summary import WHERE
from attrib.selection import CONSENSUS_RULES, Choice

CONSENSUS = (
    "Several rules look at the model, each at other evidence, which follows below. The consensus "
    "multiplies their scores: it takes the layer that is good by every one of them."
)


def why(study: LayerStudy) -> Iterator[str]:
    """Per modality, what makes the chosen layer the choice of the rule."""
    report = study.report
    if report.rule == "consensus":
        yield CONSENSUS
    for modality, layers in report.layers.items():
        if layers:
            choices = report.choices[modality]
            voters = [rule for rule in CONSENSUS_RULES if rule in choices]
            if report.rule == "consensus" and len(voters) > 1:
                yield _good_by_all(WHERE[modality], choices, voters)
            else:
                only = voters[0] if report.rule == "consensus" else report.rule
                yield (
                    f"For {WHERE[modality]} layer {layers[0]} has the highest score of {only}: "
                    f"{report.meanings[only]}."
                )


def _good_by_all(what: str, choices: Mapping[str, Choice], voters: list[str]) -> str:
    own, ranking = choices["consensus"].layer, choices["consensus"].ranking
    favourites = [rule for rule in voters if choices[rule].layer == own]
    start = (
        f"is the favourite of {' and '.join(favourites)}, and good by the others"
        if favourites
        else "is no rule's favourite, but good by all of them"
    )
    sentence = f"For {what} layer {own} {start}: it has {_shares(choices, voters, own)}."
    if len(ranking) < 2:
        return sentence
    return (
        f"{sentence} The next best, layer {ranking[1]}, has {_shares(choices, voters, ranking[1])}."
    )


def _shares(choices: Mapping[str, Choice], voters: list[str], layer: int) -> str:
    """What a layer gets of the highest score of each rule."""
    parts = []
    for rule in voters:
        scores = [score for score in choices[rule].scores if score is not None]
        share = max(0.0, choices[rule].scores[layer] or 0.0) / max(scores)
        parts.append(f"{share:.0%} of {rule}'s{'' if parts else ' highest score'}")
    return ", ".join(parts)
