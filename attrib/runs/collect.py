"""Measuring in batches. A batch that fails is halved until the sample that makes it fail is alone.

That sample is set aside, the others are measured. A batch that does not fit into memory is halved
in the same way, and later batches are as small from the start.
"""

import logging
from collections.abc import Sequence

import torch
from PIL import Image

from attrib.data import EditSample
from attrib.errors import AttribError, RowError, SetupError
from attrib.memory import free_memory, is_out_of_memory
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.progress import progress
from attrib.runs.collected import (
    MEMORY,
    NOT_FINITE,
    REFUSED,
    Collected,
    Measure,
    file_of,
    nothing_left,
)
from attrib.runs.health import first_bad_layer, not_finite

One = tuple[EditSample, Image.Image | None]
logger = logging.getLogger("attrib")


class Collector:
    """Measures samples, and adds what came out to what is collected already.

    Attributes:
        batch_size: samples per pass; it shrinks where memory ends.
    """

    def __init__(self, vlm: VLM, measure: Measure, batch_size: int):
        if batch_size < 1:
            raise AttribError(f"batch size: expected 1 or more, got {batch_size}")
        self.vlm, self.measure, self.batch_size = vlm, measure, batch_size
        self._told = False

    @torch.no_grad()
    def add(self, samples: Sequence[EditSample], done: Collected) -> None:
        """Measure the requests of `samples` into `done`, in order."""
        waiting = [_opened(samples, done)]
        while waiting:
            group = waiting.pop()
            size = min(len(group), self.batch_size)
            if size < len(group):
                waiting += [group[size:], group[:size]]
            elif group and (failure := self._attempt(group, done)):
                where, error = failure
                if where == MEMORY:
                    self._back_off(size)
                if size > 1:
                    half = (size + 1) // 2
                    waiting += [group[half:], group[:half]]
                else:
                    self._refuse(group[0], where, error, done)

    def _attempt(self, group: list[One], done: Collected) -> tuple[str, Exception] | None:
        """None once the group is in `done`; else which field is to blame, and why."""
        samples, where = [sample for sample, _ in group], "prompt"
        try:
            batch = _encode(self.vlm, group)
            where = REFUSED
            tables = self.measure(self.vlm, batch, samples)
            broken = not_finite(tables)
            layers = {one[0].id: self._broken_layer(one) for one in group if one[0].id in broken}
        except SetupError:
            raise
        except AttribError as error:
            return where, error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The frames in the traceback hold the tensors that did not fit.
            return MEMORY, error.with_traceback(None)
        for sample in samples:
            if sample.id in broken:
                told = layers[sample.id] or "the output of every layer of the model is finite"
                done.set_aside(sample, NOT_FINITE, f"{broken[sample.id]}; {told}")
        if used := [sample for sample in samples if sample.id not in broken]:
            good = {name: t.loc[~t["example"].isin(list(broken))] for name, t in tables.items()}
            done.used += used
            done.parts.append(good)
        return None

    def _refuse(self, one: One, where: str, error: Exception, done: Collected) -> None:
        """Set aside a sample that fails alone, and keep what may be said of all samples."""
        general = not isinstance(error, RowError)
        if where == REFUSED and general and (told := self._broken_layer(one)):
            done.set_aside(one[0], NOT_FINITE, f"{told}: {error}")
            return
        done.set_aside(one[0], where, error)
        if where in (REFUSED, MEMORY) and general:
            done.refusal = done.refusal or error

    def _broken_layer(self, one: One) -> str:
        """Where the model's numbers break down over a sample, in words; nothing if they do not."""
        layer = first_bad_layer(self.vlm, _encode(self.vlm, [one]))
        told = f"the first layer of the model with an output that is not finite is {layer}"
        return "" if layer is None else told

    def _back_off(self, size: int) -> None:
        free_memory()
        if size > 1:
            self.batch_size = (size + 1) // 2
            if not self._told:
                logger.warning("out of memory with %d samples a pass: going on with fewer", size)
            self._told = True


def collect(
    vlm: VLM,
    samples: Sequence[EditSample],
    measure: Measure,
    *,
    batch_size: int = 8,
    what: str = "samples",
) -> Collected:
    """`measure` over the requests of `samples`.

    A sample whose image, prompt or numbers cannot be used is quarantined, the others go on.

    Raises:
        SetupError: when not one sample could be used.
        AttribError: when the measurement refused every sample.
    """
    collector = Collector(vlm, measure, batch_size)
    done = Collected(file_of(samples))
    for start in progress(range(0, len(samples), batch_size), what):
        collector.add(samples[start : start + batch_size], done)
    if not done.used:
        raise done.refusal or SetupError(nothing_left(done.quarantined))
    return done


def _opened(samples: Sequence[EditSample], done: Collected) -> list[One]:
    """The samples with their images, without those whose image `done` now holds as unusable."""
    opened: list[One] = []
    for sample in samples:
        try:
            opened.append((sample, sample.request.image))
        except AttribError as error:
            done.set_aside(sample, "image", error)
    return opened


def _encode(vlm: VLM, group: list[One]) -> Batch:
    images, prompts = [image for _, image in group], [sample.request.prompt for sample, _ in group]
    return vlm.encode(images, prompts).named([sample.id for sample, _ in group])
