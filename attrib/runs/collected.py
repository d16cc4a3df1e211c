"""What measurements leave: tables over the samples that could be used, and names of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from attrib.data import EditData, EditSample, Quarantined
from attrib.errors import RowError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

# A measurement runs a batch and returns tables by name, each with a column `example`.
Tables = dict[str, pd.DataFrame]
Measure = Callable[[VLM, Batch, Sequence[EditSample]], Tables]
# The fields that are named where no field of a row is to blame.
MEMORY = "memory"  # a sample alone does not fit
REFUSED = "request"  # the measurement itself refused a sample
NOT_FINITE = "value"  # the model's numbers broke down


@dataclass
class Collected:
    """Tables over all samples that could be used, and the rows that could not.

    Attributes:
        file: the dataset file that the samples' rows stand in, if there is one.
        parts: what the measurement returned, batch by batch.
        used: the samples that are in the tables, in order.
        failed: the others: where each stands and what is wrong with it.
        refusal: the first error of the measurement itself, which may be about every sample.
    """

    file: str = ""
    parts: list[Tables] = field(default_factory=list)
    used: list[EditSample] = field(default_factory=list)
    failed: list[tuple[EditSample, Quarantined]] = field(default_factory=list)
    refusal: Exception | None = None

    @property
    def tables(self) -> Tables:
        """The tables over all batches; none where no sample could be used."""
        names = self.parts[0] if self.parts else ()
        return {n: pd.concat([part[n] for part in self.parts], ignore_index=True) for n in names}

    @property
    def quarantined(self) -> list[Quarantined]:
        """The rows that could not be used."""
        return [record for _, record in self.failed]

    def set_aside(self, sample: EditSample, where: str, why: str | Exception) -> None:
        """Quarantine a sample: under its own words where a bad row says them."""
        row = sample.meta.get("row")
        named = Quarantined(self.file or sample.id, row, where, " ".join(str(why).split()))
        self.failed.append(
            (sample, Quarantined.from_error(why) if isinstance(why, RowError) else named)
        )


def file_of(samples: Sequence[EditSample]) -> str:
    """The dataset file that the samples' rows stand in, or nothing."""
    return samples.provenance.get("file", "") if isinstance(samples, EditData) else ""


def nothing_left(quarantined: Sequence[Quarantined]) -> str:
    """What to say where not one sample could be used."""
    if not quarantined:
        return "no sample to work on: the data is empty; see `attrib data check`"
    return f"none of {len(quarantined)} rows can be used; the first: {quarantined[0]}"
