"""Metrics: the means of a sample's scores by kind of input, and metrics that combine several."""

from collections.abc import Mapping, Sequence

import numpy as np

from attrib.data.rows import HARD_LOCALITY
from editors.evaluation.probes import Probe
from editors.evaluation.protocols import PORT, Answer, judge

FIVE = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
SAME_IMAGE = ("same_image_same_kind", "same_image_other_kind")
METRICS = (
    *(*FIVE, "avg", "text_rel", "picture_rel", "portability"),
    *(*SAME_IMAGE, "same_image", "same_question_other_image", HARD_LOCALITY),
)


def scores_of(
    protocol: str, probes: Sequence[Probe], before: Sequence[Answer], after: Sequence[Answer]
) -> dict[str, float]:
    """Score the answers to a sample's probes by one protocol; see `means`."""
    values: dict[str, list[float]] = {}
    for probe, old, new in zip(probes, before, after, strict=True):
        values.setdefault(probe.metric, []).append(judge(protocol, probe.metric, old, new))
    return means(values)


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each metric, and the metrics that combine several.

    "avg" is the mean of the papers' five metrics, where all of them exist; "same_image" is over all
    other questions about the edited image, "portability" over all questions that follow from it.
    """
    found = {metric: float(np.mean(some)) for metric, some in values.items()}
    if all(metric in found for metric in FIVE):
        found["avg"] = float(np.mean([found[metric] for metric in FIVE]))
    several = {
        "portability": [v for m, some in values.items() if m.startswith(PORT) for v in some],
        "same_image": [value for metric in SAME_IMAGE for value in values.get(metric, ())],
    }
    return found | {name: float(np.mean(some)) for name, some in several.items() if some}
