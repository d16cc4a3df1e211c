"""Answers of several words: what layers each word asks for, and the earliest of them."""

from collections.abc import Sequence
from dataclasses import replace

from attrib.errors import AttribError
from attrib.selection.report import LayerReport
from attrib.selection.rules import MODALITIES, Modality

WORDS = "layers by word"  # in a report's provenance


def combine_words(reports: Sequence[LayerReport]) -> LayerReport:
    """Per modality the earliest layers that any word of the answers asks for.

    What is written at a layer reaches only what is read behind it, and the words of one answer are
    read at different depths. Written early enough for the earliest, the others are served as well.

    Args:
        reports: Of one model, by one rule, each with another word of the answers as the target.

    Returns:
        What the earliest word says of each modality; its provenance has the layers of each word.

    Raises:
        AttribError: There is no report.
    """
    if not reports:
        raise AttribError("no report of any word of the answers; give one or more")
    first = reports[0]
    if len(reports) == 1:
        return first
    own = {modality: _earliest(reports, modality) for modality in MODALITIES}
    return replace(
        first,
        layers={m: one.layers[m] for m, one in own.items()},
        choices={m: one.choices[m] for m, one in own.items()},
        agreement={m: one.agreement[m] for m, one in own.items()},
        left_out=list(dict.fromkeys(line for one in reports for line in one.left_out)),
        provenance={**first.provenance, WORDS: [dict(one.layers) for one in reports]},
    )


def summarize_words(report: LayerReport) -> str:
    """A line per word of the answers that was looked at; nothing where it was one."""
    lines = [
        f"Word {number} asks for "
        + ", ".join(f"{m} {', '.join(map(str, some)) or 'none'}" for m, some in layers.items())
        for number, layers in enumerate(report.provenance.get(WORDS, ()), 1)
    ]
    return "\n".join(
        [*lines, "Every word is to be served: the earliest layer counts."] * bool(lines)
    )


def _earliest(reports: Sequence[LayerReport], modality: Modality) -> LayerReport:
    chosen = [one for one in reports if one.layers[modality]]
    return min(chosen, key=lambda one: min(one.layers[modality]), default=reports[0])
