"""Edits that are applied together while each of their samples is scored, and their times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.base import Edit, Mode, edit_all, require_encodable

T = TypeVar("T")


@dataclass(eq=False)
class Groups:
    """Samples in groups of `size`, in their order, edited in one of the modes of `edit_all`.

    The current group's edit is cached. The last group, and any with unusable samples, is smaller.
    """

    samples: Sequence[EditSample]
    size: int
    mode: Mode | None = None
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
            usable = [one for one in group if _is_usable(vlm, one)]
            edit, ms = timed(vlm, lambda: edit_all(vlm, editor, usable, self.mode))
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


def _is_usable(vlm: VLM, sample: EditSample) -> bool:
    """Whether the model can read a request and there is a target; others are quarantined elsewhere.

    What the sample is judged on does not matter to those that it is edited with.
    """
    try:
        require_encodable(vlm, EditSample(sample.id, sample.request), {})
    except AttribError:
        return False
    return bool(sample.request.target.strip())
