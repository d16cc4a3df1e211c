"""One measurement over many samples, in batches; samples that cannot be measured are quarantined.

A batch that fails is halved until the failing sample is alone. That sample is quarantined, the
others are measured. A batch that does not fit into memory is halved too, and later batches stay
small.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from PIL import Image

from attrib.data import EditData, EditSample, Quarantined
from attrib.errors import AttribError, RowError, SetupError, describe
from attrib.forward.hooks import read
from attrib.memory import free_memory, is_out_of_memory
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.progress import progress

# A measurement runs a batch and returns tables by name, each with a column `example`.
Tables = dict[str, pd.DataFrame]
Measure = Callable[[VLM, Batch, Sequence[EditSample]], Tables]
# What a quarantine record names where no field of a row is at fault.
MEMORY = "memory"  # a single sample does not fit
REFUSED = "request"  # the measurement refused the sample
NOT_FINITE = "value"  # the model's numbers are not finite
BROKE = "error"  # an error that nobody foresaw
Opened = tuple[EditSample, Image.Image | None]
logger = logging.getLogger("attrib")


@dataclass
class Collected:
    """Tables over all samples that could be measured, and records of the others.

    Attributes:
        file: the dataset file that the samples' rows come from, if there is one.
        parts: the tables of each batch.
        used: the samples in the tables, in order.
        failed: the other samples with their quarantine records.
        refusal: the first error of the measurement itself, which may concern every sample.
    """

    file: str = ""
    parts: list[Tables] = field(default_factory=list)
    used: list[EditSample] = field(default_factory=list)
    failed: list[tuple[EditSample, Quarantined]] = field(default_factory=list)
    refusal: Exception | None = None

    @property
    def tables(self) -> Tables:
        """The tables over all batches; empty if no sample could be used."""
        names = self.parts[0] if self.parts else ()
        return {n: pd.concat([part[n] for part in self.parts], ignore_index=True) for n in names}

    @property
    def quarantined(self) -> list[Quarantined]:
        """The records of the samples that could not be used."""
        return [record for _, record in self.failed]

    def quarantine(self, sample: EditSample, where: str, why: str | Exception) -> None:
        """Record that a sample cannot be used; a RowError names its own file, row and field."""
        if isinstance(why, RowError):
            record = Quarantined.from_error(why)
        else:
            reason = " ".join(str(why).split())
            if isinstance(why, Exception) and not (reason and isinstance(why, AttribError)):
                reason = describe(why)
            record = Quarantined(self.file or sample.id, sample.meta.get("row"), where, reason)
        self.failed.append((sample, record))


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
    if not done.used:
        raise done.refusal or SetupError(empty_message(done.quarantined))
    return done


def require_unique(samples: Sequence[EditSample]) -> None:
    """Refuse samples of which two have the same id."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise AttribError(f"two samples have the id {sample.id!r}: ids must be unique")
        seen.add(sample.id)


def file_of(samples: Sequence[EditSample]) -> str:
    """The dataset file that the samples' rows come from, or ""."""
    return samples.provenance.get("file", "") if isinstance(samples, EditData) else ""


def empty_message(quarantined: Sequence[Quarantined]) -> str:
    """The message for a dataset without a usable sample."""
    if not quarantined:
        return "no sample to work on: the data is empty; see `attrib data check`"
    return f"none of {len(quarantined)} rows can be used; the first: {quarantined[0]}"


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


def not_finite(tables: Tables) -> dict[str, str]:
    """Example -> message, for examples whose values are not finite in the last layers."""
    broken = {}
    for name, table in tables.items():
        if "layer" not in table:
            continue
        # A missing token kind (no image, no BOS) is NaN too; a broken example is NaN all over.
        finite = table.assign(value=np.isfinite(table["value"]))
        layers = finite.pivot_table("value", "example", "layer", aggfunc="any")
        for example, row in zip(layers.index, layers.to_numpy(dtype=bool), strict=True):
            if not row[-1]:
                broken[example] = f"{name}: no finite number from layer {row.argmin()} on"
    return broken


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
