"""The answers of an edited model: only inputs that an edit applies to are run with it.

An input that does not open an edit's gate gets the unedited model's answer, bit for bit; it is
known already. The others are run together, which rounds their logits in another way than beside
inputs that the edit leaves alone. In half precision that may decide between two tokens: there all
inputs are run.
"""

from collections.abc import Sequence
from typing import Any

import torch

from attrib.model.vlm import VLM
from editors.base import Edit, is_causal
from editors.evaluation.protocols import Answer, EncodedProbes

EXACT = (torch.float32, torch.float64)


def edited_answers(
    vlm: VLM, edit: Edit, probes: EncodedProbes, before: Sequence[Answer]
) -> list[Answer]:
    """Answers to the probes with an edit applied.

    Args:
        vlm: The model.
        edit: The edit. If it has a method `of_rows(vlm, batch)`, that returns what answers each
            example of a batch: an edit, or None for the unedited model.
        probes: The probes.
        before: The unedited model's answers.
    """
    edits = _of_rows(vlm, edit, probes)
    if edits is None:
        with edit.applied(vlm):
            return probes.answers(vlm, causal=is_causal(edit))
    answers = list(before)
    for one in {id(e): e for e in edits if e is not None}.values():
        rows = [i for i, e in enumerate(edits) if e is one]
        own = probes if len(rows) == len(edits) else probes.only(vlm, rows)
        with one.applied(vlm):
            found = own.answers(vlm, causal=is_causal(one))
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers


def _of_rows(vlm: VLM, edit: Any, probes: EncodedProbes) -> list[Edit | None] | None:
    """What answers each probe; None if that is not known before."""
    of_rows = getattr(edit, "of_rows", None)
    if of_rows is None or vlm.dtype not in EXACT:
        return None
    found: list[Edit | None] = []
    for batch in probes.batches:
        some = of_rows(vlm, batch)
        if some is None:
            return None
        found += some
    return found
