"""An analysis over a dataset, in a folder: as units, any number of which may be there already.

    run = prepare(vlm, data, "runs/x", name="attention", options={"seed": 0})
    outcome = run.execute(measure_attention, batch_size=8)

Killed at any moment and started again, with another batch size or number of ranks, it goes on with
what is missing. Batches are formed inside units, so that no number depends on the interruptions.
"""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd

from attrib.data import EditData, Quarantined
from attrib.errors import SetupError
from attrib.model.vlm import VLM
from attrib.runs import manifest as manifests
from attrib.runs.collecting import Collector, Measure, file_of, nothing_left
from attrib.runs.distributed import PATIENCE_SECONDS, Rank, wait_for
from attrib.runs.provenance import described
from attrib.runs.shards import Part, Parts, merged
from attrib.runs.units import Unit, split
from attrib.runs.working import Worker, mended

ALONE = Rank()
logger = getLogger("attrib")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished run holds.

    Attributes:
        tables: over all samples that could be used, in the order of the dataset.
        used: their names.
        quarantined: the rows that could not be used, those that loading set aside first.
        manifest: what the numbers are made of; also in `manifest.json`.
    """

    tables: dict[str, pd.DataFrame]
    used: list[str]
    quarantined: list[Quarantined]
    manifest: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A run that may begin: its folder is new, or was made with the same settings.

    Attributes:
        vlm: the model.
        data: the dataset.
        out: the run's folder.
        units: all units of the data.
        manifest: what the numbers are made of.
        rank: which of the processes that share the run this is.
        parts: what was committed.
    """

    vlm: VLM
    data: EditData
    out: Path
    units: list[Unit]
    manifest: dict[str, Any]
    rank: Rank = ALONE
    parts: Parts = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "parts", Parts(self.out))

    def committed(self) -> list[Unit]:
        """The units that are there, by the names of their files."""
        return [unit for unit in self.units if self.parts.has(unit)]

    def execute(self, measure: Measure, *, batch_size: int = 8) -> Outcome | None:
        """Measure what is missing; the outcome, or None for all ranks but the first.

        Args:
            measure: maps a batch and its samples to tables by name.
            batch_size: samples per pass; a pass ends where its unit does.

        Raises:
            SetupError: when not one sample could be used.
            AttribError: when the measurement refused every sample.
            OSError: when the folder cannot be written.
        """
        if not self.units:
            raise SetupError(nothing_left(self.data.quarantined))
        collector = Collector(self.vlm, measure, batch_size)
        known = bool(self.committed())
        if not known:
            manifests.write(self.out, self.manifest)
        self.parts.clean()
        what = "" if self.rank.number else self.manifest["command"]
        worker = Worker(collector, self.parts, file_of(self.data), what, worked=known)
        worker.measure(self._missing())
        return None if self.rank.number else self._finish(worker)

    def _missing(self) -> list[Unit]:
        """This rank's units that are to be measured.

        The first rank also takes back what the others are to measure again: it will wait for it.
        """
        looked_at = self.rank.mine(self.units) if self.rank.number else self.units
        missing = {unit.key for unit in looked_at if not self._stands(unit)}
        if known := len(looked_at) - len(missing):
            logger.info("%d of %d units are there already", known, len(looked_at))
        return [unit for unit in self.rank.mine(self.units) if unit.key in missing]

    def _stands(self, unit: Unit) -> bool:
        part = self.parts.read(unit)
        if part is None:
            return False
        samples = {sample.id: sample for sample in unit.samples}
        if any(mended(samples[name], record) for name, record in part.failed.items()):
            self.parts.drop(unit)
            return False
        return True

    def _finish(self, worker: Worker) -> Outcome:
        parts = self._collected(worker)
        used = [name for part in parts for name in part.used]
        failed = [record for part in parts for record in part.failed.values()]
        if not used:
            raise SetupError(nothing_left(failed))
        quarantined = [*self.data.quarantined, *failed]
        counts = {"examples": len(used), "quarantined": len(quarantined)}
        # The command that made the folder stays the one that is named.
        first = manifests.stored(self.out).get("invocation", self.manifest["invocation"])
        made = {**self.manifest, "invocation": first, **counts}
        manifests.write(self.out, made)
        return Outcome(merged(parts), used, quarantined, made)

    def _collected(self, worker: Worker) -> list[Part]:
        """The parts of all units, in order, also those that other ranks commit."""
        patience = max(PATIENCE_SECONDS, 3 * worker.slowest) if self.rank.world > 1 else 0.0
        while True:
            wait_for(self.units, self.parts, lambda unit: worker.measure([unit]), patience)
            parts = [self.parts.read(unit) for unit in self.units]
            if None not in parts:  # A part may turn out damaged while it is read.
                return [part for part in parts if part]


def prepare(
    vlm: VLM,
    data: EditData,
    out: str | Path,
    *,
    name: str,
    options: Mapping[str, Any],
    seed: int = 0,
    free: Set[str] = manifests.ALWAYS_FREE,
    rank: Rank = ALONE,
    invocation: str = "",
) -> Run:
    """A run that may begin; nothing is written yet.

    Args:
        vlm: the model.
        data: the dataset.
        out: the run's folder: new, empty, or of a run with the same settings.
        name: of the analysis.
        options: everything that changes the numbers, as JSON can hold it.
        seed: of the intervals that are computed from the tables.
        free: entries of the manifest in which a resumption may differ.
        rank: which of the processes that share the run this is.
        invocation: the command line, for the manifest.

    Raises:
        SetupError: for a folder that is not a run's, or is one with other settings.
        AttribError: for two samples of one name.
    """
    out = Path(out)
    manifests.refuse_foreign(out)
    head = {"command": name, "invocation": invocation}
    made = json.loads(json.dumps({**head, **described(vlm, data, options, seed)}, allow_nan=False))
    manifests.refuse_other(out, made, free)
    return Run(vlm, data, out, split(data), made, rank)
