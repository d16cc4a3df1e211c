"""Scores of an editor: each sample's edit alone, by all protocols, on a model that comes back.

    scores = evaluate(vlm, editor, samples, protocols=("paper", "exact", "generate"))
    print(markdown([scores]))

For every sample the unedited model is asked first, then the same inputs inside `edit.applied`; in
the end the model must be, bit for bit, what it was. Rephrases, other images and unrelated inputs
share the batches of the request, so an edit that serves inputs must tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import pandas as pd
import torch

from attrib.data.samples import EditData, EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.runs.collect import Tables, collect
from attrib.runs.provenance import provenance_of
from editors.base import Edit
from editors.evaluation.latency import timed
from editors.evaluation.metrics import COLUMNS, NO_GATE, UNEDITED, cost_rows, score_rows
from editors.evaluation.multi_edit import Groups
from editors.evaluation.probes import Inputs
from editors.evaluation.protocols import Answer
from editors.evaluation.reference_model import DEFAULT_PROTOCOLS, ReferenceModel

SCORES = "scores"  # the name of the table
UNGATED = "ungated"
READS_ANSWER = "sequence_last"  # the published gate looks at the last target token


@runtime_checkable
class MakesEdits(Protocol):
    """What is needed of an `Editor` to score it; `gate`, where it has one, names its gate."""

    name: ClassVar[str]

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """The edit that installs a request."""
        ...


def evaluate(
    vlm: VLM,
    editor: MakesEdits,
    samples: Sequence[EditSample],
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    *,
    label: str | None = None,
    reference: ReferenceModel | None = None,
    num_edits: int = 1,
    batch_size: int = 16,
    seed: int = 0,
) -> Result:
    """The scores of `editor`, one edit at a time or several at once.

    A sample that cannot be used (a missing image, an empty target) is set aside; the provenance
    names it.

    Args:
        vlm: The model.
        editor: Makes the edits.
        samples: What to edit, and what each edit is judged by.
        protocols: What makes an answer right; see `editors.evaluation.protocols`.
        label: What to call the editor in tables; by default its name.
        reference: The unedited model's answers, to share them between editors.
        num_edits: How many edits hold while each of them is judged: samples are taken in groups, in
            their order.
        batch_size: Inputs in a pass.
        seed: Of the bootstrap intervals that are computed from the result.

    Returns:
        One row per sample, protocol and metric (`editors.evaluation.metrics.METRICS`), of the
        editor and of the unedited model: example, editor, gate, kind (of the request), protocol,
        metric, value from 0 to 1. Rows of the protocol "cost" hold per edit: edit_ms; bytes stored;
        pass_ms and edited_pass_ms, of one pass over the request without the edit and with it.

    Raises:
        NotRestored: An edit left the model changed.
        SetupError: Not one sample could be used.
        AttribError: No edit could be made, or `reference` is of another model.
    """
    reference = reference or ReferenceModel(vlm, tuple(protocols), batch_size)
    groups = Groups(list(samples), num_edits) if num_edits > 1 else None
    measure = Scoring.of(vlm, editor, reference, protocols, label, groups)
    reference.require_restored(measure.label, "an earlier run")
    done = collect(vlm, samples, measure, batch_size=1, what=f"edits of {measure.label}")
    data = samples if isinstance(samples, EditData) else EditData("samples", "", list(samples))
    made = provenance_of(vlm, data, measure.described(), seed, done)
    named = {"quarantined_rows": [str(row) for row in (*data.quarantined, *done.quarantined)]}
    return Result(SCORES, done.tables[SCORES], made | named)


@dataclass(frozen=True, eq=False)
class Scoring:
    """The measurement of one sample, for `attrib.runs`; batches of one.

    Attributes:
        editor: Makes the edits.
        label: What to call it.
        gate: What decides which inputs are served: "ungated", or the gate's name.
        reference: The unedited model's answers.
        protocols: What makes an answer right.
        groups: Which edits hold together; None for each alone.
    """

    editor: MakesEdits
    label: str
    gate: str
    reference: ReferenceModel
    protocols: tuple[str, ...]
    groups: Groups | None = None

    @classmethod
    def of(
        cls,
        vlm: VLM,
        editor: MakesEdits,
        reference: ReferenceModel,
        protocols: Sequence[str],
        label: str | None = None,
        groups: Groups | None = None,
    ) -> "Scoring":
        """The measurement, if `reference` fits.

        Raises:
            AttribError: `reference` is of another model or lacks a protocol, or the label is taken.
        """
        if reference.vlm is not vlm:
            raise AttribError(f"the unedited answers are of another model: {reference.vlm.name}")
        if lacking := [name for name in protocols if name not in reference.protocols]:
            raise AttribError(
                f"the unedited answers lack {lacking[0]}: ReferenceModel(vlm, protocols)"
            )
        label = label or editor.name
        if label == UNEDITED:
            raise AttribError(f"{UNEDITED!r} is what the model's own rows are called; give a label")
        if groups is not None:
            label = f"{label}, {groups.size} edits at once"
        return cls(editor, label, gate_of(editor), reference, tuple(protocols), groups)

    def __call__(self, vlm: VLM, batch: Batch, samples: Sequence[EditSample]) -> Tables:
        """The table of scores of one sample; `batch` is its request."""
        (sample,) = samples
        inputs = self.reference.inputs(sample)
        before = self.reference.answers(sample, inputs)
        after, costs = self._edited(vlm, batch, sample, inputs)
        answers = {(UNEDITED, NO_GATE): before, (self.label, self.gate): after}
        rows = [
            *score_rows(sample, inputs, self.protocols, answers, before),
            *cost_rows(sample, self.label, self.gate, costs),
        ]
        return {SCORES: pd.DataFrame(rows, columns=list(COLUMNS))}

    def described(self) -> dict[str, Any]:
        """What the scores depend on, for their provenance."""
        return {
            "editor": self.editor.name,
            "label": self.label,
            "gate": self.gate,
            "protocols": list(self.protocols),
            "inputs_in_a_pass": self.reference.batch_size,
            "edits_at_once": 1 if self.groups is None else self.groups.size,
        }

    def _edited(
        self, vlm: VLM, batch: Batch, sample: EditSample, inputs: Inputs
    ) -> tuple[list[Answer], dict[str, float]]:
        """What the edited model answers, and what the edit cost."""
        _, pass_ms = timed(vlm, lambda: vlm.logits(batch))
        try:
            with torch.enable_grad():  # some editors train on the request
                edit, together, edit_ms = self._edit(vlm, sample)
            with edit.applied(vlm):
                after = inputs.ask(vlm)
                _, edited_pass_ms = timed(vlm, lambda: vlm.logits(batch))
        finally:
            self.reference.require_restored(self.label, sample.id)
        costs = {"edit_ms": edit_ms, "bytes": edit.num_bytes / together}
        return after, costs | {"pass_ms": pass_ms, "edited_pass_ms": edited_pass_ms}

    def _edit(self, vlm: VLM, sample: EditSample) -> tuple[Edit, int, float]:
        """What holds while a sample is judged, how many edits that is, milliseconds for one."""
        if self.groups is not None:
            return self.groups.edit(vlm, self.editor, sample)
        edit, ms = timed(vlm, lambda: self.editor.edit(vlm, sample.request))
        return edit, 1, ms


def gate_of(editor: MakesEdits) -> str:
    """What an editor's gate is called in tables, which say so where it reads the answer."""
    gate = getattr(editor, "gate", None)
    name = UNGATED if gate is None else str(getattr(gate, "name", type(gate).__name__))
    return f"{name} (reads the answer)" if name == READS_ANSWER else name
