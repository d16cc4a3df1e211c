"""Measure samples batch by batch, and commit them shard by shard.

A batch that fails is halved until the failing sample is alone. That sample is quarantined, the
others are measured. A batch that does not fit into memory is halved too, and later batches stay
small.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from attrib.data import EditSample
from attrib.errors import AttribError, RowError, SetupError, is_out_of_memory
from attrib.forward.hooks import read
from attrib.forward.memory import free_memory
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.progress import progress
from attrib.runs.collected import (
    BROKE,
    MEMORY,
    NOT_FINITE,
    REFUSED,
    Collected,
    Measure,
    check,
    empty_message,
    file_of,
    not_finite,
    require_unique,
)
from attrib.runs.shards import Shard, ShardStore

Opened = tuple[EditSample, Image.Image | list[Image.Image] | None]
Pass = tuple[Shard, Sequence[EditSample], bool]  # the last: whether it completes the shard
logger = logging.getLogger("attrib")


class Collector:
    """Measures samples batch by batch.

    Attributes:
        batch_size: samples per pass; it shrinks when memory runs out.
    """

    def __init__(self, vlm: VLM, measure: Measure, batch_size: int):
        if batch_size < 1:
            raise AttribError(f"batch size: expected 1 or more, got {batch_size}")
        self.vlm, self.measure, self.batch_size = vlm, measure, batch_size
        self._warned = False

    @torch.no_grad()
    def add(self, samples: Sequence[EditSample], done: Collected) -> None:
        """Measure the requests of `samples` into `done`, in order."""
        waiting = [_open_images(samples, done)]
        while waiting:
            group = waiting.pop()
            size = min(len(group), self.batch_size)
            if size < len(group):
                waiting += [group[size:], group[:size]]
            elif group and (failure := self._attempt(group, done)):
                where, error = failure
                if where == MEMORY:
                    self._shrink(size)
                if size > 1:
                    half = (size + 1) // 2
                    waiting += [group[half:], group[:half]]
                else:
                    self._refuse(group[0], where, error, done)

    def _attempt(self, group: list[Opened], done: Collected) -> tuple[str, Exception] | None:
        """Measure a group into `done`; on failure, the field at fault and the error."""
        samples, where = [sample for sample, _ in group], "prompt"
        try:
            batch = _encode(self.vlm, group)
            where = REFUSED
            tables = self.measure(self.vlm, batch, samples)
            broken = not_finite(tables)
            layers = {one[0].id: self._first_bad(one) for one in group if one[0].id in broken}
        except SetupError:
            raise
        except AttribError as error:
            return where, error
        except torch.AcceleratorError:
            raise  # the device is lost, and with it every later row
        except Exception as error:
            # The traceback's frames hold the tensors that did not fit.
            return (
                (MEMORY, error.with_traceback(None)) if is_out_of_memory(error) else (BROKE, error)
            )
        for sample in samples:
            if sample.id in broken:
                layer = layers[sample.id] or "the output of every layer of the model is finite"
                done.quarantine(sample, NOT_FINITE, f"{broken[sample.id]}; {layer}")
        if used := [sample for sample in samples if sample.id not in broken]:
            good = {name: t.loc[~t["example"].isin(list(broken))] for name, t in tables.items()}
            done.used += used
            done.parts.append(good)
        return None

    def _refuse(self, one: Opened, where: str, error: Exception, done: Collected) -> None:
        """Quarantine a sample that fails alone; keep an error that may concern every sample."""
        general = not isinstance(error, RowError)
        if where == REFUSED and general and (layer := self._first_bad(one)):
            done.quarantine(one[0], NOT_FINITE, f"{layer}: {error}")
            return
        done.quarantine(one[0], where, error)
        if where in (REFUSED, MEMORY, BROKE) and general:
            done.refusal = done.refusal or error

    def _first_bad(self, one: Opened) -> str:
        layer = first_bad_layer(self.vlm, _encode(self.vlm, [one]))
        message = f"the first layer of the model with an output that is not finite is {layer}"
        return "" if layer is None else message

    def _shrink(self, size: int) -> None:
        free_memory()
        if size > 1:
            self.batch_size = (size + 1) // 2
            if not self._warned:
                logger.warning("out of memory with %d samples a pass: continuing with fewer", size)
            self._warned = True


@dataclass(eq=False)
class Worker:
    """Measures shards and commits them.

    Attributes:
        collector: measures samples.
        store: the committed shards.
        file: the dataset file that the samples' rows come from.
        what: name of the work on the progress bar; "" for no progress.
        started: whether any shard of the run was committed.
        slowest: seconds that the slowest shard took.
    """

    collector: Collector
    store: ShardStore
    file: str
    what: str
    started: bool
    slowest: float = 0.0

    def measure(self, shards: Sequence[Shard]) -> None:
        """Measure and commit shards.

        Raises:
            AttribError: The measurement gives the same error for all samples of the first shard:
                an option must be wrong.
        """
        done, start = Collected(self.file), time.monotonic()
        for shard, samples, complete in self._passes(shards):
            self.collector.add(samples, done)
            if complete:
                if done.refusal and not self.started and _same_for_all(done):
                    raise done.refusal
                check(self.collector.measure)
                self.store.write(shard, done)
                self.started = True
                self.slowest = max(self.slowest, time.monotonic() - start)
                done, start = Collected(self.file), time.monotonic()

    def _passes(self, shards: Sequence[Shard]) -> Iterable[Pass]:
        size = self.collector.batch_size
        passes = [
            (shard, shard.samples[start : start + size], start + size >= len(shard.samples))
            for shard in shards
            for start in range(0, len(shard.samples), size)
        ]
        return progress(passes, self.what) if passes and self.what else passes


def collect(
    vlm: VLM,
    samples: Sequence[EditSample],
    measure: Measure,
    *,
    batch_size: int = 8,
    what: str = "samples",
) -> Collected:
    """Measure the requests of `samples`; samples that cannot be used are quarantined.

    Raises:
        SetupError: No sample could be used.
        AttribError: The measurement refused every sample, or two samples have the same id.
    """
    require_unique(samples)
    collector = Collector(vlm, measure, batch_size)
    done = Collected(file_of(samples))
    for start in progress(range(0, len(samples), batch_size), what):
        collector.add(samples[start : start + batch_size], done)
    check(measure)
    if not done.used:
        raise done.refusal or SetupError(empty_message(done.quarantined))
    return done


def first_bad_layer(vlm: VLM, batch: Batch) -> int | None:
    """The first layer whose output is not finite at some position of the prompts, if any."""
    with read(vlm) as hidden:
        vlm.last_logits(batch)
    real = batch.inputs["attention_mask"].bool()
    for layer in range(vlm.num_layers):
        h = hidden[layer]
        if not h[real.to(h.device)].isfinite().all():
            return layer
    return None


def _open_images(samples: Sequence[EditSample], done: Collected) -> list[Opened]:
    opened: list[Opened] = []
    for sample in samples:
        try:
            opened.append((sample, sample.request.image))
        except Exception as error:  # sources are functions of callers
            done.quarantine(sample, "image", error)
    return opened


def _encode(vlm: VLM, group: list[Opened]) -> Batch:
    images, prompts = [image for _, image in group], [sample.request.prompt for sample, _ in group]
    return vlm.encode(images, prompts).named([sample.id for sample, _ in group])


def _same_for_all(done: Collected) -> bool:
    by_measure = {record.field for record in done.quarantined} <= {REFUSED, MEMORY, BROKE}
    one_reason = len({record.reason for record in done.quarantined}) == 1
    return by_measure and one_reason and not done.used
