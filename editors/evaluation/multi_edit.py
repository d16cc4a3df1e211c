"""Several edits kept at once: each sample is judged while the edits around it hold as well."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from attrib.data.samples import EditSample
from attrib.errors import AttribError, RowError
from attrib.model.vlm import VLM
from editors.base import Edit
from editors.evaluation.latency import timed


@dataclass(frozen=True, eq=False)
class Stacked:
    """Edits that were made one inside the other, and hold in that order.

    Attributes:
        edits: The first one made comes first.
    """

    edits: Sequence[Edit]

    @property
    def num_bytes(self) -> int:
        """Bytes kept of all."""
        return sum(edit.num_bytes for edit in self.edits)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """All of them hold."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied(vlm))
            yield


def edits_of(vlm: VLM, editor: Any, samples: Sequence[EditSample]) -> Edit:
    """The edits of several samples as one, in their order.

    Editors whose edits set the same weights (`sequential`) make each edit while the ones
    before it hold; the others make each of the unedited model, and put them together.

    Raises:
        AttribError: The editor keeps one edit at a time.
    """
    if getattr(editor, "sequential", False):
        edits: list[Edit] = []
        with ExitStack() as stack:
            for sample in samples:
                edits.append(editor.edit(vlm, sample.request))
                stack.enter_context(edits[-1].applied(vlm))
        return Stacked(edits)
    merge = getattr(editor, "merge", None)
    if merge is None:
        raise AttribError(f"{editor.name} keeps one edit at a time: it has no `merge`")
    return merge([editor.edit(vlm, sample.request) for sample in samples])


@dataclass(eq=False)
class Groups:
    """Samples in groups of a size, in their order; the edits of the last group asked for are kept.

    Attributes:
        samples: All of them; a sample is known by its id.
        size: Of a group; the last one may be smaller, and one with samples that cannot be used.
    """

    samples: Sequence[EditSample]
    size: int
    _of: dict[str, int] = field(init=False, repr=False)
    _number: int | None = field(default=None, init=False, repr=False)
    _made: tuple[Edit, int, float] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.size < 1:
            raise AttribError(f"edits at once: expected 1 or more, got {self.size}")
        self._of = {sample.id: i // self.size for i, sample in enumerate(self.samples)}

    def edit(self, vlm: VLM, editor: Any, sample: EditSample) -> tuple[Edit, int, float]:
        """The edits of a sample's group as one, their number, and milliseconds for one of them."""
        number = self._of[sample.id]
        if self._made is None or self._number != number:
            group = self.samples[number * self.size : (number + 1) * self.size]
            usable = [one for one in group if _is_usable(one)]
            edit, ms = timed(vlm, lambda: edits_of(vlm, editor, usable))
            self._number, self._made = number, (edit, len(usable), ms / len(usable))
        return self._made


def _is_usable(sample: EditSample) -> bool:
    """Whether the request has what an edit needs; a sample that has not is set aside elsewhere."""
    try:
        _ = sample.request.image
    except RowError:
        return False
    return bool(sample.request.target.strip())
