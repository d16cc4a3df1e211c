"""The outcome of measuring samples: their tables, and quarantine records of the others."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from attrib.data import EditData, EditRequest, EditSample, Quarantined
from attrib.errors import AttribError, RowError, describe
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

# A measurement runs a batch and returns tables by name, each with a column `example`.
Tables = dict[str, pd.DataFrame]
Measure = Callable[[VLM, Batch, Sequence[EditSample]], Tables]
# What a quarantine record names where no field of a row is at fault.
MEMORY = "memory"  # a single sample does not fit
REFUSED = "request"  # the measurement refused the sample
NOT_FINITE = "value"  # the model's numbers are not finite
BROKE = "error"  # an error that nobody foresaw
IMAGE_FIELDS = ("image", "image_rephrase", "m_loc")


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
        if isinstance(why, RowError) and why.file:
            record = Quarantined.from_error(why)
        else:
            row_error = isinstance(why, RowError)
            where, text = (why.field, why.reason) if row_error else (where, str(why))
            reason = " ".join(text.split())
            if isinstance(why, Exception) and not (reason and isinstance(why, AttribError)):
                reason = describe(why)
            record = Quarantined(self.file or sample.id, sample.meta.get("row"), where, reason)
        self.failed.append((sample, record))


def check(measure: Measure) -> None:
    """Call a measurement's own `check()`, if it has one, before its tables are committed.

    It raises SetupError if something went wrong that no single sample shows.
    """
    if (own := getattr(measure, "check", None)) is not None:
        own()


def file_of(samples: Sequence[EditSample]) -> str:
    """The dataset file that the samples' rows come from, or ""."""
    return samples.provenance.get("file", "") if isinstance(samples, EditData) else ""


def empty_message(quarantined: Sequence[Quarantined]) -> str:
    """The message for a dataset without a usable sample."""
    if not quarantined:
        return "no sample to work on: the data is empty; see `attrib data check`"
    return f"none of {len(quarantined)} rows can be used; the first: {quarantined[0]}"


def require_unique(samples: Sequence[EditSample]) -> None:
    """Refuse samples of which two have the same id."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise AttribError(f"two samples have the id {sample.id!r}: ids must be unique")
        seen.add(sample.id)


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


def should_retry(sample: EditSample, record: Quarantined) -> bool:
    """Whether a quarantined sample may work now: a repaired image, more memory, a mended bug."""
    if record.field in (MEMORY, BROKE):
        return True
    field = re.sub(r"\[\d+\]$", "", record.field)  # of several images
    named = (*IMAGE_FIELDS, *sample.meta.get("image_fields", ()))  # a table has its own names
    if field not in named and not field.endswith(".image"):
        return False
    return record.reason not in {_image_error(request) for request in sample.requests}


def _image_error(request: EditRequest) -> str:
    try:
        _ = request.image
    except RowError as error:
        return Quarantined.from_error(error).reason
    except AttribError as error:
        return " ".join(str(error).split())
    return ""
