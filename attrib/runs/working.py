"""Measuring units and committing them; and which of the committed ones deserve another try."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attrib.data import EditRequest, EditSample, Quarantined
from attrib.errors import AttribError, RowError
from attrib.progress import progress
from attrib.runs.collecting import MEMORY, REFUSED, Collected, Collector
from attrib.runs.shards import Parts
from attrib.runs.units import Unit

Pass = tuple[Unit, Sequence[EditSample], bool]  # the last: whether the unit is complete with it


@dataclass(eq=False)
class Worker:
    """Measures units and commits them.

    Attributes:
        collector: measures samples.
        parts: where units are committed.
        file: the dataset file that the samples' rows stand in.
        what: name of the work, for the progress; nothing is said without one.
        worked: whether any unit of the run was committed.
        slowest: seconds that the slowest unit took.
    """

    collector: Collector
    parts: Parts
    file: str
    what: str
    worked: bool
    slowest: float = 0.0

    def measure(self, units: Sequence[Unit]) -> None:
        """Measure and commit units.

        Raises:
            AttribError: what the measurement says of every sample, if it says the same of all in
                the first unit: an option cannot be right then.
        """
        done, start = Collected(self.file), time.monotonic()
        for unit, samples, complete in self._passes(units):
            self.collector.add(samples, done)
            if complete:
                if done.refusal and not self.worked and _the_same_of_all(done):
                    raise done.refusal
                self.parts.write(unit, done)
                self.worked = True
                self.slowest = max(self.slowest, time.monotonic() - start)
                done, start = Collected(self.file), time.monotonic()

    def _passes(self, units: Sequence[Unit]) -> Iterable[Pass]:
        size = self.collector.batch_size
        passes = [
            (unit, unit.samples[start : start + size], start + size >= len(unit.samples))
            for unit in units
            for start in range(0, len(unit.samples), size)
        ]
        return progress(passes, self.what) if passes and self.what else passes


def mended(sample: EditSample, record: Quarantined) -> bool:
    """Whether a sample that was set aside may do now: its picture was repaired, or memory added."""
    if record.field == MEMORY:
        return True
    about_a_picture = record.field in ("image", "image_rephrase", "m_loc")
    if not about_a_picture and not record.field.endswith(".image"):
        return False
    requests = [
        sample.request,
        *sample.text_generality,
        *sample.visual_generality,
        *sample.text_locality,
        *sample.visual_locality,
        *sample.hard_locality,
    ]
    return record.reason not in {_complaint(request) for request in requests}


def _complaint(request: EditRequest) -> str:
    """What is wrong with a request's picture, as its record says it."""
    try:
        _ = request.image
    except RowError as error:
        return Quarantined.from_error(error).reason
    except AttribError as error:
        return " ".join(str(error).split())
    return ""


def _the_same_of_all(done: Collected) -> bool:
    by_measure = {record.field for record in done.quarantined} <= {REFUSED, MEMORY}
    one_reason = len({record.reason for record in done.quarantined}) == 1
    return by_measure and one_reason and not done.used
