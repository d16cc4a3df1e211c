"""Measuring shards and committing them; which quarantined samples to try again."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attrib.data import EditRequest, EditSample, Quarantined
from attrib.errors import AttribError, RowError
from attrib.progress import progress
from attrib.runs.collect import BROKE, MEMORY, REFUSED, Collected, Collector
from attrib.runs.shards import Shard, ShardStore

Pass = tuple[Shard, Sequence[EditSample], bool]  # the last: whether it completes the shard
IMAGE_FIELDS = ("image", "image_rephrase", "m_loc")


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


def should_retry(sample: EditSample, record: Quarantined) -> bool:
    """Whether a quarantined sample may work now: a repaired image, more memory, a mended bug."""
    if record.field in (MEMORY, BROKE):
        return True
    if record.field not in IMAGE_FIELDS and not record.field.endswith(".image"):
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


def _same_for_all(done: Collected) -> bool:
    by_measure = {record.field for record in done.quarantined} <= {REFUSED, MEMORY, BROKE}
    one_reason = len({record.reason for record in done.quarantined}) == 1
    return by_measure and one_reason and not done.used
