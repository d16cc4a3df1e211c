"""An analysis over a dataset, in a folder, shard by shard.

    run = prepare(vlm, data, "runs/x", name="attention", options={"seed": 0})
    outcome = run.execute(measure_attention, batch_size=8)

A run that was killed continues with the missing shards, also with another number of processes
and, in float32, another batch size. Batches are formed inside shards, so that no number depends on
interruptions.
"""

import json
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd

from attrib.data import EditData, Quarantined
from attrib.errors import SetupError
from attrib.forward.memory import samples_at_once
from attrib.model.precision import is_half
from attrib.model.vlm import VLM
from attrib.runs import manifest as manifests
from attrib.runs import shards as shard_files
from attrib.runs.collect import Collector, Worker
from attrib.runs.collected import Measure, empty_message, file_of, should_retry
from attrib.runs.distributed import TIMEOUT_SECONDS, Rank, wait_for
from attrib.runs.manifest import provenance_of
from attrib.runs.shards import Shard, ShardResult, ShardStore, merge, split

SINGLE = Rank()
BATCH_SIZE = "options.batch_size"
PROBED = 4  # samples that are encoded to judge the length of all
logger = getLogger("attrib")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run holds.

    Attributes:
        tables: over all samples that could be used, in the order of the dataset.
        used: the ids of those samples.
        quarantined: records of the rows that could not be used, in loading or in the run.
        manifest: how the numbers were made; also in `manifest.json`.
    """

    tables: dict[str, pd.DataFrame]
    used: list[str]
    quarantined: list[Quarantined]
    manifest: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A run whose folder is new, or was made with the same settings.

    Attributes:
        vlm: the model.
        data: the dataset.
        out: the run's folder.
        shards: all shards of the data.
        manifest: how the numbers are made.
        free: entries of the manifest in which processes that share the folder may differ.
        rank: this process among those that share the run.
        batch_size: samples per pass.
        undecided: whether another process that starts now may fix the batch size.
        store: the committed shards.
    """

    vlm: VLM
    data: EditData
    out: Path
    shards: list[Shard]
    manifest: dict[str, Any]
    free: Set[str]
    rank: Rank = SINGLE
    batch_size: int = 8
    undecided: bool = False
    store: ShardStore = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "store", ShardStore(self.out))

    def committed(self) -> list[Shard]:
        """The shards that exist, judged by file name."""
        return [shard for shard in self.shards if self.store.has(shard)]

    def execute(self, measure: Measure, *, batch_size: int | None = None) -> Outcome | None:
        """Measure the missing shards.

        Args:
            measure: maps a batch and its samples to tables by name.
            batch_size: samples per pass, if not those of the run; a pass ends where its shard does.

        Returns:
            The outcome over all shards; None in every process but the first.

        Raises:
            SetupError: No sample could be used, or another process started with other settings.
            AttribError: The measurement refused every sample.
            OSError: The folder cannot be written.
        """
        if not self.shards:
            raise SetupError(empty_message(self.data.quarantined))
        free = self.free | ({BATCH_SIZE} if self.undecided else set())
        with manifests.claimed(self.out, self.manifest, free) as made:
            return self._joining(made)._measure(measure, batch_size)

    def _measure(self, measure: Measure, batch_size: int | None) -> Outcome | None:
        collector = Collector(self.vlm, measure, batch_size or self.batch_size)
        self.store.clean()
        what = "" if self.rank.number else self.manifest["command"]
        started = bool(self.committed())
        worker = Worker(collector, self.store, file_of(self.data), what, started)
        worker.measure(self._missing())
        return None if self.rank.number else self._finish(worker)

    def _joining(self, made: Mapping[str, Any]) -> "Run":
        """The run with the shards and the batch size of the process that started it first."""
        rows = made.get("rows_per_shard", shard_files.ROWS)
        size = made["options"]["batch_size"] if self.undecided else self.batch_size
        options = made["options"] if self.undecided else self.manifest["options"]
        manifest = {**self.manifest, "options": options, "rows_per_shard": rows}
        return replace(self, manifest=manifest, shards=split(self.data, rows), batch_size=size)

    def _missing(self) -> list[Shard]:
        """This process's shards that are to be measured.

        The first process also checks the shards of the others, since it waits for them.
        """
        mine = self.rank.mine(self.shards)
        looked_at = mine if self.rank.number else self.shards
        missing = {shard.key for shard in looked_at if not self._is_valid(shard)}
        if known := len(looked_at) - len(missing):
            name = self.manifest["command"]
            logger.info("%s: %d of %d shards exist already", name, known, len(looked_at))
        return [shard for shard in mine if shard.key in missing]

    def _is_valid(self, shard: Shard) -> bool:
        part = self.store.read(shard)
        if part is None:
            return False
        samples = {sample.id: sample for sample in shard.samples}
        if any(should_retry(samples[name], record) for name, record in part.failed.items()):
            self.store.drop(shard)
            return False
        return True

    def _finish(self, worker: Worker) -> Outcome:
        parts = self._read_all(worker)
        used = [name for part in parts for name in part.used]
        failed = [record for part in parts for record in part.failed.values()]
        if not used:
            raise SetupError(empty_message(failed))
        quarantined = [*self.data.quarantined, *failed]
        counts = {"examples": len(used), "quarantined": len(quarantined)}
        # The command that made the folder remains the one that the manifest names.
        first = manifests.stored(self.out).get("invocation", self.manifest["invocation"])
        made = {**self.manifest, "invocation": first, **counts}
        manifests.write(self.out, made)
        return Outcome(merge(parts), used, quarantined, made)

    def _read_all(self, worker: Worker) -> list[ShardResult]:
        """All shards, in order, including those that other processes commit."""
        timeout = max(TIMEOUT_SECONDS, 3 * worker.slowest) if self.rank.world > 1 else 0.0
        while True:
            wait_for(self.shards, self.store, lambda shard: worker.measure([shard]), timeout)
            parts = [self.store.read(shard) for shard in self.shards]
            if None not in parts:  # a shard may prove damaged when it is read
                return [part for part in parts if part]


def prepare(
    vlm: VLM,
    data: EditData,
    out: str | Path,
    *,
    name: str,
    options: Mapping[str, Any],
    seed: int = 0,
    free: Set[str] = manifests.NON_IDENTIFYING,
    rank: Rank = SINGLE,
    invocation: str = "",
    batch_size: int | None = 8,
) -> Run:
    """Check that a run may start or continue in a folder. Writes nothing.

    Args:
        vlm: the model.
        data: the dataset.
        out: the run's folder: new, empty, or of a run with the same settings.
        name: of the analysis.
        options: everything that changes the numbers, as JSON can hold it.
        seed: of the intervals that are computed from the tables.
        free: entries of the manifest in which a resumption may differ.
        rank: this process among those that share the run.
        invocation: the command line, for the manifest.
        batch_size: samples per pass. None takes that of the run in the folder or, for a new one,
            what is efficient and fits in memory, and records it as an option.

    Raises:
        SetupError: The folder is not a run's, or of a run with other settings.
        AttribError: Two samples have the same id.
    """
    out = Path(out)
    manifests.refuse_foreign(out)
    head = {"command": name, "invocation": invocation}
    made = {**head, **provenance_of(vlm, data, options, seed)}
    made = json.loads(json.dumps(made, allow_nan=False))
    stored = manifests.stored(out)
    undecided = batch_size is None and not stored
    size = batch_size or stored.get("options", {}).get("batch_size") or samples_per_pass(vlm, data)
    if batch_size is None:
        made["options"]["batch_size"] = size
    # A pass fits into a shard; a run goes on with the shards that it has.
    smallest, started = shard_files.ROWS, any((out / "parts").glob("*.parquet"))
    rows = stored.get("rows_per_shard", smallest) if started else max(smallest, size)
    made["rows_per_shard"] = rows
    if is_half(vlm.dtype):  # rounding depends on what shares a batch: sizes must not mix
        free = free - {BATCH_SIZE}
    manifests.refuse_other(out, made, free)
    return Run(vlm, data, out, split(data, rows), made, free, rank, size, undecided)


def samples_per_pass(vlm: VLM, data: EditData) -> int:
    """What is efficient and fits in memory, for the longest of a few samples."""
    sizes = []
    for sample in list(data)[:: max(1, len(data) // PROBED)][:PROBED]:
        with suppress(Exception):  # the run quarantines it
            batch = vlm.encode([sample.request.image], [sample.request.prompt])
            sizes.append(samples_at_once(vlm, batch))
    return min(sizes, default=1)
