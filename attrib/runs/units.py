"""Units of work: fixed slices of a dataset's rows, whatever the batch size or number of ranks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from attrib.data import EditSample
from attrib.errors import AttribError

ROWS = 16  # small enough to lose little to an interruption, large enough to fill a pass


@dataclass(frozen=True, eq=False)
class Unit:
    """The usable samples among `ROWS` neighbouring rows.

    Attributes:
        index: which slice of the rows it is.
        samples: in the order of the rows.
    """

    index: int
    samples: tuple[EditSample, ...]

    @property
    def key(self) -> str:
        """Names the unit's files: its place, and a digest of the samples it is made of."""
        ids = "\n".join(sample.id for sample in self.samples)
        return f"{self.index:06d}-{hashlib.sha256(ids.encode()).hexdigest()[:8]}"


def split(samples: Sequence[EditSample]) -> list[Unit]:
    """The units of a dataset, in order.

    They are cut by row number where samples have one, so that a row that cannot be used, or can be
    used at last, changes its own unit only.

    Raises:
        AttribError: for two samples of one name.
    """
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise AttribError(f"two samples are named {sample.id!r}: give each its own id")
        seen.add(sample.id)
    rows = [sample.meta.get("row") for sample in samples]
    numbers = [row for row in rows if isinstance(row, int)]
    if len(numbers) < len(rows) or numbers != sorted(numbers):
        numbers = list(range(len(samples)))
    slices = groupby(zip(numbers, samples, strict=True), key=lambda pair: pair[0] // ROWS)
    return [Unit(index, tuple(sample for _, sample in pairs)) for index, pairs in slices]
