"""Several edits at once: each sample is scored while the edits of its group are applied too."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from attrib.data.samples import EditSample
from attrib.errors import AttribError, RowError
from attrib.model.vlm import VLM
from editors.base import Edit

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SequentialEdit:
    """Edits that were made one after the other, each on the edited model, applied in that order."""

    edits: Sequence[Edit]

    @property
    def num_bytes(self) -> int:
        """Bytes stored for all of them."""
        return sum(edit.num_bytes for edit in self.edits)

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply all of them."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied(vlm))
            yield


def edit_all(vlm: VLM, editor: Any, samples: Sequence[EditSample]) -> Edit:
    """Return the edits of several samples as one, in their order.

    An editor whose edits set the same weights (`sequential`) makes each edit with the earlier ones
    applied. Any other editor edits the original model for each sample, and the edits are merged:
    batch editing.

    Raises:
        AttribError: The editor supports one edit at a time only.
    """
    if getattr(editor, "sequential", False):
        edits: list[Edit] = []
        with ExitStack() as stack:
            for sample in samples:
                edits.append(editor.edit(vlm, sample.request))
                stack.enter_context(edits[-1].applied(vlm))
        return SequentialEdit(edits)
    merge = getattr(editor, "merge", None)
    if merge is None:
        raise AttribError(f"{editor.name} keeps one edit at a time: it has no `merge`")
    return merge([editor.edit(vlm, sample.request) for sample in samples])


@dataclass(eq=False)
class Groups:
    """Samples in groups of `size`, in their order; the edit of the current group is cached.

    The last group may be smaller, as may one with unusable samples.
    """

    samples: Sequence[EditSample]
    size: int
    _of: dict[str, int] = field(init=False, repr=False)
    _current: int | None = field(default=None, init=False, repr=False)
    _edit: tuple[Edit, int, float] | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.size < 1:
            raise AttribError(f"edits at once: expected 1 or more, got {self.size}")
        self._of = {sample.id: i // self.size for i, sample in enumerate(self.samples)}

    def edit(self, vlm: VLM, editor: Any, sample: EditSample) -> tuple[Edit, int, float]:
        """Return the merged edit of a sample's group, its size, and milliseconds per edit."""
        number = self._of[sample.id]
        if self._edit is None or self._current != number:
            group = self.samples[number * self.size : (number + 1) * self.size]
            usable = [one for one in group if _is_usable(one)]
            edit, ms = timed(vlm, lambda: edit_all(vlm, editor, usable))
            self._current, self._edit = number, (edit, len(usable), ms / len(usable))
        return self._edit


def timed(vlm: VLM, run: Callable[[], T]) -> tuple[T, float]:
    """Return what `run` returns, and the milliseconds until the model's device finished it."""
    start = _now(vlm)
    result = run()
    return result, 1000 * (_now(vlm) - start)


def _now(vlm: VLM) -> float:
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
    return time.perf_counter()


def _is_usable(sample: EditSample) -> bool:
    """Whether a request has an image and a target; other samples are quarantined elsewhere."""
    try:
        _ = sample.request.image
    except RowError:
        return False
    return bool(sample.request.target.strip())
