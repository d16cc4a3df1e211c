"""The answers of an edited model: only inputs that an edit applies to are run with it.

An input that does not open an edit's gate gets the unedited model's answer, bit for bit; it is
known already. The others are run together, which rounds their logits in another way than beside
inputs that the edit leaves alone. In half precision that may decide between two tokens: there
batches are run whole, as they are without a gate.

Where the unedited model's pass over the inputs is kept, the gate reads its states, and the edited
pass starts with the first layer that the edit changes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from attrib.model.vlm import VLM
from editors.base import Edit, SequentialEdit, WeightEdit, is_causal
from editors.evaluation.probes import EncodedProbes
from editors.evaluation.protocols import Answer
from editors.gating.gated_editor import RoutedEdit

EXACT = (torch.float32, torch.float64)


def edited_answers(
    vlm: VLM, edit: Edit, probes: EncodedProbes, before: Sequence[Answer]
) -> list[Answer]:
    """Answers to the probes with an edit applied.

    Args:
        vlm: The model.
        edit: The edit. If it has a method `of_rows(vlm, batch, hidden)`, that returns what answers
            each example of a batch: an edit, or None for the unedited model. `hidden` has the
            unedited model's outputs by layer, or is None.
        probes: The probes.
        before: The unedited model's answers.
    """
    edits = _of_rows(vlm, edit, probes) or [edit] * len(probes.probes)
    answers = list(before)
    for one in {id(e): e for e in edits if e is not None}.values():
        rows = [i for i, e in enumerate(edits) if e is one]
        for row, answer in zip(rows, _answers(vlm, one, probes, rows), strict=True):
            answers[row] = answer
    return answers


def gated_answers(
    vlm: VLM,
    edit: RoutedEdit,
    probes: EncodedProbes,
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> list[Answer]:
    """Answers behind a gate that does not read answers, given those of the edit without it.

    Args:
        vlm: The model.
        edit: The edit behind its gate.
        probes: The probes.
        before: The unedited model's answers, which hold where the gate is closed.
        after: Those of the edit applied to every input.
    """
    chosen = _of_rows(vlm, edit, probes)
    assert chosen is not None
    pairs = zip(chosen, before, after, strict=True)
    return [old if one is None else new for one, old, new in pairs]


def _of_rows(vlm: VLM, edit: Any, probes: EncodedProbes) -> list[Edit | None] | None:
    """What answers each probe; None if that is not known before."""
    of_rows = getattr(edit, "of_rows", None)
    if of_rows is None:
        return None
    found: list[Edit | None] = []
    for number, batch in enumerate(probes.batches):
        kept = probes.kept[number] if probes.kept else None
        some = of_rows(vlm, batch, kept and kept.hidden)
        if some is None:
            return None
        found += some
    return found


def _answers(vlm: VLM, edit: Edit, probes: EncodedProbes, rows: Sequence[int]) -> list[Answer]:
    """The answers of the model with one edit applied to some probes."""
    first = first_layer(vlm, edit) if is_causal(edit) and any(probes.kept) else 0
    if first and (found := _resumed(vlm, edit, probes, rows, first)) is not None:
        return found
    places: Sequence[int] = range(len(rows))
    if vlm.dtype not in EXACT:
        probes, places = probes.whole_batches(rows)
    elif len(rows) < len(probes.probes):
        probes = probes.only(vlm, rows)
    with edit.applied(vlm):
        found = probes.answers(vlm, causal=is_causal(edit))
    return [found[place] for place in places]


def _resumed(
    vlm: VLM, edit: Edit, probes: EncodedProbes, rows: Sequence[int], first: int
) -> list[Answer] | None:
    """The same from the kept passes; None if one is missing, or its examples have no batch."""
    runs = []
    for number, at, all_probes in probes.by_batch(rows):
        batch, kept = probes.batches[number], probes.kept[number]
        own = batch if len(at) == batch.size else batch.only(at)
        if own is None or kept is None:
            return None
        runs.append((kept, own, at, [all_probes[row] for row in at]))
    with edit.applied(vlm):
        return [
            answer
            for kept, own, at, some in runs
            for answer in probes.read(kept.resumed(at, own, first), some)
        ]


def first_layer(vlm: VLM, edit: Any) -> int:
    """The first layer that an edit changes, or whose output it reads; 0 if that is not known."""
    if isinstance(edit, SequentialEdit):
        return min((first_layer(vlm, one) for one in edit.edits), default=0)
    if type(edit) is WeightEdit:
        return _first_with(vlm, edit.weights)
    return getattr(edit, "first_layer", 0)


def _first_with(vlm: VLM, names: Iterable[str]) -> int:
    """The first layer with one of some parameters; 0 if one is also used outside of the layers."""
    wanted = {id(vlm.model.get_parameter(name)) for name in names}
    uses = [value for _, value in vlm.model.named_parameters(remove_duplicate=False)]
    inside = [
        i
        for i, layer in enumerate(vlm.layers)
        for _, value in layer.named_parameters(remove_duplicate=False)
        if id(value) in wanted
    ]
    everywhere = sum(id(value) in wanted for value in uses)
    return min(inside) if inside and len(inside) == everywhere else 0
