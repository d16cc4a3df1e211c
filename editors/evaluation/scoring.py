"""Scores of one sample's edit: a row per metric and protocol, and rows of costs.

With groups, a sample is scored while the edits of its group are applied too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import pandas as pd
import torch

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.runs.collected import Tables
from editors.adapters.sites import Gate
from editors.base import Edit, require_in_sequence
from editors.evaluation.edited import edited_answers, gated_answers
from editors.evaluation.extra_costs import NO_EXTRA, ExtraCosts
from editors.evaluation.groups import Groups, timed
from editors.evaluation.items import item_of
from editors.evaluation.metrics import scores_of
from editors.evaluation.probes import EncodedProbes
from editors.evaluation.protocols import Answer
from editors.evaluation.reference_model import ReferenceModel
from editors.gating.gated_editor import put_behind
from editors.gating.gates import UNGATED

SCORES = "scores"  # name of the table
LEAKING = "sequence_last"  # the published gate reads the last target token
UNEDITED, UNEDITED_GATE = "unedited", "-"  # editor and gate in the unedited model's rows
COST = "cost"  # the protocol in rows of costs
TIMED = 16  # edits of which passes are timed, with and without: tables show medians
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
        behind: A gate behind which the same edits are scored too, from the same passes; None for
            the editor as it is alone.
    """

    editor: MakesEdits
    label: str
    gate: str
    reference: ReferenceModel
    protocols: tuple[str, ...]
    groups: Groups | None = None
    extra: ExtraCosts = NO_EXTRA
    behind: Gate | None = None
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
        behind: Gate | None = None,
    ) -> "Scoring":
        """Build the measurement.

        Raises:
            AttribError: `reference` lacks a protocol; the label is that of the unedited model's
                rows; `behind` is given with groups, for an editor with a gate of its own, or
                reads answers; or edits cannot be made in sequence.
        """
        if behind is not None:
            _require_apart(editor, behind, groups)
        if lacking := [name for name in protocols if name not in reference.protocols]:
            raise AttribError(
                f"the unedited answers lack {lacking[0]}: ReferenceModel(vlm, protocols)"
            )
        label = label or editor.name
        if label == UNEDITED:
            raise AttribError(f"{UNEDITED!r} names the rows of the model itself; give a label")
        if groups is not None:
            if groups.mode == "sequential":
                require_in_sequence(editor)  # before anything is scored, or read from a folder
            how = "in sequence" if groups.mode == "sequential" else "at once"
            label = f"{label}, {groups.size} edits {how}"
        gate = gate_name(editor)
        return cls(editor, label, gate, reference, tuple(protocols), groups, extra, behind)

    @property
    def num_edits(self) -> int:
        """Edits that are applied at once."""
        return 1 if self.groups is None else self.groups.size

    @property
    def behind_name(self) -> str | None:
        """Name of the gate behind which edits are scored besides; None without one."""
        return None if self.behind is None else name_of_gate(self.behind)

    def __call__(self, vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> Tables:
        """Return the scores of one sample, whose request is `batch`."""
        (sample,) = samples
        probes = self.reference.encode(sample)
        before = self.reference.answers(probes)
        after, costs = self._edited(vlm, batch, sample, probes, before)
        kind = str(sample.meta.get("kind") or sample.meta.get("task") or "")
        answered = {(UNEDITED, UNEDITED_GATE): before}
        answered |= {(self.label, gate): answers for gate, answers in after.items()}
        items = {metric: item_of(sample, metric) for metric in ("t_loc", "m_loc", "avg", "rel")}
        rows = [
            (sample.id, *editor, kind, protocol, metric, value, items.get(metric, items["rel"]))
            for editor, answers in answered.items()
            for protocol in self.protocols
            for metric, value in scores_of(protocol, probes.probes, before, answers).items()
        ]
        rows += [
            (sample.id, self.label, self.gate, kind, COST, metric, cost, sample.id)
            for metric, cost in costs.items()
        ]
        return {SCORES: pd.DataFrame(rows, columns=list(COLUMNS))}

    def described(self) -> dict[str, Any]:
        """Return what the scores depend on, for their provenance."""
        return {
            "editor": self.editor.name,
            "label": self.label,
            "gate": self.gate,
            "behind": self.behind_name,
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
    ) -> tuple[dict[str, list[Answer]], dict[str, float]]:
        """Return the edited model's answers by the gate's name, and the costs of the edit."""
        costs = self._pass_ms(vlm, batch, "pass_ms")
        costs |= self.extra.writing(vlm, batch, "before")
        self._unchecked.append(sample.id)
        try:
            with torch.enable_grad():  # some editors train on the request
                edit, size, edit_ms = self._edit(vlm, sample)
                costs |= self.extra.making(
                    vlm, sample.id, lambda: self.editor.edit(vlm, sample.request)
                )
            after = {self.gate: edited_answers(vlm, edit, probes, before)}
            if self.behind is not None:
                routed = put_behind(vlm, edit, sample.request, self.behind)
                gated = gated_answers(vlm, routed, probes, before, after[self.gate])
                after[name_of_gate(self.behind)] = gated
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
    """Name of an editor's gate in tables."""
    gate = getattr(editor, "gate", None)
    if gate is None:
        return getattr(editor, "gate_name", UNGATED)
    return name_of_gate(gate)


def name_of_gate(gate: Gate) -> str:
    """A gate's name in tables; it is marked if the gate reads the answer."""
    name = str(getattr(gate, "name", type(gate).__name__))
    return f"{name} (reads the answer)" if name == LEAKING else name


def _require_apart(editor: MakesEdits, gate: Gate, groups: Groups | None) -> None:
    """Refuse a gate whose answers do not follow from those of the editor alone."""
    if groups is not None:
        raise AttribError("behind a gate and without it: of one edit at a time, not of several")
    if (own := gate_name(editor)) != UNGATED:
        raise AttribError(f"{editor.name} has a gate of its own ({own}): score each by itself")
    if getattr(gate, "reads_target", False):
        raise AttribError("a gate that reads the answer has to run with the edit: score it alone")
