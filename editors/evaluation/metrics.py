"""From answers to rows: one per metric and protocol, for the edited and the unedited model."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from attrib.data.samples import EditSample
from editors.evaluation.probes import Inputs
from editors.evaluation.protocols import Answer, judge

UNEDITED, NO_GATE = "unedited", "-"  # the editor and the gate of the unedited model's rows
COST = "cost"  # stands as the protocol of what is no score
FIVE = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
SAME_IMAGE = ("same_image_same_kind", "same_image_other_kind")
METRICS = (*FIVE, "avg", *SAME_IMAGE, "same_image", "same_question_other_image", "hard_locality")
COLUMNS = ("example", "editor", "gate", "kind", "protocol", "metric", "value")
Row = dict[str, object]


def score_rows(
    sample: EditSample,
    inputs: Inputs,
    protocols: Sequence[str],
    answers: Mapping[tuple[str, str], Sequence[Answer]],
    before: Sequence[Answer],
) -> Iterator[Row]:
    """The rows of one sample: `COLUMNS`, with values from 0 to 1.

    Args:
        sample: Whose `meta` names the kind of the request.
        inputs: What was asked.
        protocols: What makes an answer right.
        answers: By editor and gate, what was answered.
        before: What the unedited model answered.
    """
    for (editor, gate), after in answers.items():
        for protocol in protocols:
            values: dict[str, list[float]] = {}
            for question, old, new in zip(inputs.questions, before, after, strict=True):
                value = judge(protocol, question.metric, old, new)
                values.setdefault(question.metric, []).append(value)
            for metric, value in means(values).items():
                yield _row(sample, editor, gate, protocol, metric, value)


def cost_rows(
    sample: EditSample, editor: str, gate: str, costs: Mapping[str, float]
) -> Iterator[Row]:
    """What one edit cost, as rows whose protocol is `COST`."""
    for metric, value in costs.items():
        yield _row(sample, editor, gate, COST, metric, value)


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each metric over a sample's inputs, and those that are made of several.

    "avg" is the mean of the five metrics, for samples that have all of them; "same_image" is over
    all other questions about the edited image.
    """
    found = {metric: float(np.mean(some)) for metric, some in values.items()}
    if all(metric in found for metric in FIVE):
        found["avg"] = float(np.mean([found[metric] for metric in FIVE]))
    same_image = [value for metric in SAME_IMAGE for value in values.get(metric, ())]
    if same_image:
        found["same_image"] = float(np.mean(same_image))
    return found


def _row(
    sample: EditSample, editor: str, gate: str, protocol: str, metric: str, value: float
) -> Row:
    kind = str(sample.meta.get("kind") or sample.meta.get("task") or "")
    return dict(zip(COLUMNS, (sample.id, editor, gate, kind, protocol, metric, value), strict=True))
