"""Any editor behind any gate: the gate picks per input which edit, if any, holds for it.

A batch is run once unedited, and once with each edit that was picked for one of its rows; each row
is taken from its own run. Rows without an edit are those of the unedited model, bit for bit: every
run has the same rows. A gate reads the unedited model's states, so it may read any layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.routing import routed
from attrib.model.vlm import VLM
from editors.adapters.lookup import EditIndex, index_of
from editors.adapters.sites import Gate
from editors.base import Edit, encode_requests


@dataclass(frozen=True, eq=False)
class GatedMemory:
    """One edit behind a gate.

    Attributes:
        request: The request.
        edit: The edit that installs it.
        features: What the gate compares inputs with.
    """

    request: EditRequest
    edit: Edit
    features: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class RoutedEdit:
    """Edits of any kind behind a gate.

    Attributes:
        memories: The edits, oldest first.
        gate: The gate.
    """

    memories: Sequence[GatedMemory]
    gate: Gate

    @property
    def num_bytes(self) -> int:
        """Bytes of the edits and of what the gate stores of them."""
        stored = sum(m.edit.num_bytes for m in self.memories)
        return stored + sum(t.nbytes for m in self.memories for t in m.features.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply the edits to batches of `vlm.logits`, `vlm.last_logits` and `vlm.generate`."""

        def route(batch: Batch, run: Callable[[], Any]) -> Any:
            chosen = self.choose(vlm, batch)
            rows = run()
            for index in sorted({i for i in chosen.tolist() if i >= 0}):
                with self.memories[index].edit.applied(vlm):
                    edited = run()
                rows = _with_rows(rows, edited, (chosen == index).nonzero()[:, 0].tolist())
            return rows

        with routed(vlm, route):
            yield

    def of_rows(
        self, vlm: VLM, batch: Batch, hidden: Mapping[int, Tensor] | None = None
    ) -> list[Edit | None] | None:
        """The edit that answers each example, None for the unedited model.

        None of a gate that reads answers: what it decides depends on how the model is asked.
        `hidden` has the unedited model's outputs by layer, where they are known.
        """
        if getattr(self.gate, "reads_target", False):
            return None
        return [
            None if index < 0 else self.memories[index].edit
            for index in self.choose(vlm, batch, hidden).tolist()
        ]

    def without(self, request: EditRequest) -> "RoutedEdit":
        """The other edits, where the one of this very request (the object) is unlearned.

        Raises:
            AttribError: It is not among them.
        """
        left = [memory for memory in self.memories if memory.request is not request]
        if len(left) == len(self.memories):
            raise AttribError(f"no edit of {request!r} to remove")
        return RoutedEdit(left, self.gate)

    @cached_property
    def index(self) -> EditIndex:
        """Finds the edit that holds for an input; made once."""
        return index_of(self.gate, [memory.features for memory in self.memories])

    @torch.no_grad()
    def choose(
        self, vlm: VLM, batch: Batch, hidden: Mapping[int, Tensor] | None = None
    ) -> Int[Tensor, " batch"]:
        """Index of the edit that holds for each example, -1 for none; of equals the newest."""
        return self.index.nearest(gate_features(vlm, self.gate, batch, hidden)).cpu()


@dataclass(frozen=True, eq=False)
class GatedEditor:
    """An editor whose edits stand behind a gate.

    Attributes:
        editor: The editor, without a gate of its own.
        gate: The gate.
    """

    editor: Any
    gate: Gate

    @property
    def name(self) -> str:
        """Name of the editor."""
        return self.editor.name

    def edit(self, vlm: VLM, request: EditRequest) -> RoutedEdit:
        """Make the edit, and encode the request for the gate."""
        return put_behind(vlm, self.editor.edit(vlm, request), request, self.gate)

    def merge(self, edits: Sequence[RoutedEdit]) -> RoutedEdit:
        """Hold several edits at once: the nearest one, or none, applies to each input."""
        return RoutedEdit([memory for edit in edits for memory in edit.memories], self.gate)


def put_behind(vlm: VLM, edit: Edit, request: EditRequest, gate: Gate) -> RoutedEdit:
    """Put the edit that installs a request behind a gate."""
    (features,) = gate_features(vlm, gate, encode_requests(vlm, [request]))
    return RoutedEdit([GatedMemory(request, edit, features)], gate)


def behind(editor: Any, gate: Gate | None) -> Any:
    """An editor behind a gate, or behind none.

    Editors with a gate of their own, SERAC with its scope classifier, and LTE with its retrieval,
    get the other one in its place.
    """
    if isinstance(editor, GatedEditor):
        editor = editor.editor
    own = getattr(editor, "with_gate", None)
    if own is None:
        return editor if gate is None else GatedEditor(editor, gate)
    written = [site.layer for site in getattr(editor, "sites", ())]
    if gate is None or max(gate.layers) <= min(written, default=-1):
        return own(gate)
    return GatedEditor(own(None), gate)  # it reads the unedited model, whatever is written


@torch.no_grad()
def gate_features(
    vlm: VLM, gate: Gate, batch: Batch, hidden: Mapping[int, Tensor] | None = None
) -> list[dict[str, Tensor]]:
    """What a gate reads of each example of a batch, from the unedited model's outputs by layer.

    Without them, the unedited model runs up to the last layer that is needed.
    """
    if outside := [layer for layer in gate.layers if layer >= vlm.num_layers]:
        raise AttribError(
            f"the gate reads layer {outside[0]}, but {vlm.name} has layers 0 to "
            f"{vlm.num_layers - 1}; it belongs to another model"
        )
    return gate.states(states_up_to(vlm, batch, gate.layers, hidden), batch)


def _with_rows(rows: Any, edited: Any, at: Sequence[int]) -> Any:
    """Rows of one run with some of another; tensors or texts."""
    if isinstance(rows, Tensor):
        where = torch.tensor(list(at), device=rows.device)
        return rows.index_copy(0, where, edited[where].to(rows))
    return [edited[i] if i in set(at) else row for i, row in enumerate(rows)]
