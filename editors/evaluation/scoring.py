"""Scores of one sample's edit: a row per metric and protocol, and rows of costs.

With groups, a sample is scored while the edits of its group are applied too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.runs.collected import Tables
from editors.base import Edit
from editors.evaluation.edited import edited_answers
from editors.evaluation.extra_costs import NO_EXTRA, ExtraCosts
from editors.evaluation.groups import Groups, timed
from editors.evaluation.items import item_of
from editors.evaluation.probes import EncodedProbes, Probe
from editors.evaluation.protocols import PORT, Answer, judge
from editors.evaluation.reference_model import ReferenceModel
from editors.gating.gates import UNGATED

SCORES = "scores"  # name of the table
LEAKING = "sequence_last"  # the published gate reads the last target token
UNEDITED, UNEDITED_GATE = "unedited", "-"  # editor and gate in the unedited model's rows
COST = "cost"  # the protocol in rows of costs
TIMED = 16  # edits of which passes are timed, with and without: tables show medians
FIVE = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
SAME_IMAGE = ("same_image_same_kind", "same_image_other_kind")
METRICS = (
    *(*FIVE, "avg", "text_rel", "picture_rel", "portability"),
    *(*SAME_IMAGE, "same_image", "same_question_other_image", "hard_locality"),
)
COLUMNS = ("example", "editor", "gate", "kind", "protocol", "metric", "value", "item")


@runtime_checkable
class MakesEdits(Protocol):
    """What `evaluate` needs of an editor; its `gate`, if there is one, is named in tables."""

    name: ClassVar[str]

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """Return the edit that installs a request."""
        ...


@dataclass(frozen=True, eq=False)
class Scoring:
    """The measurement of one sample, in batches of one.

    Attributes:
        editor: The editor.
        label: Its name in tables.
        gate: The gate's name in tables, or "ungated".
        reference: The unedited model's answers.
        protocols: See `editors.evaluation.protocols`.
        groups: Edits that are applied at once; None for one at a time.
        extra: What to measure besides.
    """

    editor: MakesEdits
    label: str
    gate: str
    reference: ReferenceModel
    protocols: tuple[str, ...]
    groups: Groups | None = None
    extra: ExtraCosts = NO_EXTRA
    _timed: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _unchecked: list[str] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def of(
        cls,
        editor: MakesEdits,
        reference: ReferenceModel,
        protocols: Sequence[str],
        label: str | None = None,
        groups: Groups | None = None,
        extra: ExtraCosts = NO_EXTRA,
    ) -> "Scoring":
        """Build the measurement; raise AttribError if `reference` lacks a protocol.

        The label may not be that of the unedited model's rows.
        """
        if lacking := [name for name in protocols if name not in reference.protocols]:
            raise AttribError(
                f"the unedited answers lack {lacking[0]}: ReferenceModel(vlm, protocols)"
            )
        label = label or editor.name
        if label == UNEDITED:
            raise AttribError(f"{UNEDITED!r} names the rows of the model itself; give a label")
        if groups is not None:
            how = "in sequence" if groups.mode == "sequential" else "at once"
            label = f"{label}, {groups.size} edits {how}"
        return cls(editor, label, gate_name(editor), reference, tuple(protocols), groups, extra)

    @property
    def num_edits(self) -> int:
        """Edits that are applied at once."""
        return 1 if self.groups is None else self.groups.size

    def __call__(self, vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> Tables:
        """Return the scores of one sample, whose request is `batch`."""
        (sample,) = samples
        probes = self.reference.encode(sample)
        before = self.reference.answers(probes)
        after, costs = self._edited(vlm, batch, sample, probes, before)
        kind = str(sample.meta.get("kind") or sample.meta.get("task") or "")
        names = (self.label, self.gate)
        items = {metric: item_of(sample, metric) for metric in ("t_loc", "m_loc", "avg", "rel")}
        rows = [
            (sample.id, *editor, kind, protocol, metric, value, items.get(metric, items["rel"]))
            for editor, answers in (((UNEDITED, UNEDITED_GATE), before), (names, after))
            for protocol in self.protocols
            for metric, value in scores_of(protocol, probes.probes, before, answers).items()
        ]
        rows += [
            (sample.id, *names, kind, COST, metric, cost, sample.id)
            for metric, cost in costs.items()
        ]
        return {SCORES: pd.DataFrame(rows, columns=list(COLUMNS))}

    def described(self) -> dict[str, Any]:
        """Return what the scores depend on, for their provenance."""
        return {
            "editor": self.editor.name,
            "label": self.label,
            "gate": self.gate,
            "protocols": list(self.protocols),
            "inputs_in_a_pass": self.reference.batch_size,
            "edits_at_once": self.num_edits,
            "fluency_tokens": self.extra.fluency,
        }

    def check(self) -> None:
        """Raise NotRestored unless the model is bit for bit as before; asked before a commit."""
        edited, which = self._unchecked, ""
        if edited:
            which = edited[0] if len(edited) == 1 else f"one of {edited[0]} to {edited[-1]}"
            self.reference.require_restored(self.label, which)
        edited.clear()

    def _edited(
        self,
        vlm: VLM,
        batch: Batch,
        sample: EditSample,
        probes: EncodedProbes,
        before: Sequence[Answer],
    ) -> tuple[list[Answer], dict[str, float]]:
        """Return the edited model's answers and the costs of the edit."""
        costs = self._pass_ms(vlm, batch, "pass_ms")
        costs |= self.extra.writing(vlm, batch, "before")
        self._unchecked.append(sample.id)
        try:
            with torch.enable_grad():  # some editors train on the request
                edit, size, edit_ms = self._edit(vlm, sample)
                costs |= self.extra.making(
                    vlm, sample.id, lambda: self.editor.edit(vlm, sample.request)
                )
            after = edited_answers(vlm, edit, probes, before)
            if "pass_ms" in costs or self.extra.fluency:
                with edit.applied(vlm):
                    costs |= self._pass_ms(vlm, batch, "edited_pass_ms")
                    costs |= self.extra.writing(vlm, batch, "after")
        finally:
            self.reference.require_restored(self.label, sample.id, every_bit=False)
        return after, {"edit_ms": edit_ms, "bytes": edit.num_bytes / size, **costs}

    def _pass_ms(self, vlm: VLM, batch: Batch, name: str) -> dict[str, float]:
        """Milliseconds of a pass over the request, for the first edits."""
        if self._timed.setdefault(name, 0) >= TIMED:
            return {}
        self._timed[name] += 1
        return {name: timed(vlm, lambda: vlm.logits(batch))[1]}

    def _edit(self, vlm: VLM, sample: EditSample) -> tuple[Edit, int, float]:
        """Return the edit to apply, the number of edits in it, and milliseconds for one."""
        if self.groups is not None:
            return self.groups.edit(vlm, self.editor, sample)
        edit, ms = timed(vlm, lambda: self.editor.edit(vlm, sample.request))
        return edit, 1, ms


def gate_name(editor: MakesEdits) -> str:
    """Name of an editor's gate in tables; it is marked if the gate reads the answer."""
    gate = getattr(editor, "gate", None)
    if gate is None:
        return getattr(editor, "gate_name", UNGATED)
    name = str(getattr(gate, "name", type(gate).__name__))
    return f"{name} (reads the answer)" if name == LEAKING else name


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
