"""The result of one analysis: a tidy table that knows how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from attrib.files import atomic_write
from attrib.stats import RESAMPLES, bootstrap_means, interval, wilson

METADATA_KEY = b"attrib"


@dataclass(frozen=True, eq=False)
class Result:
    """One analysis over many examples.

    Attributes:
        analysis: name of the analysis.
        frame: one row per example x layer x ...; columns `example`, `value` and what the
            analysis varies (`layer`, `module`, ...).
        provenance: everything needed to run it again (model, options, versions, seeds, data);
            made of what JSON can hold.
    """

    analysis: str
    frame: pd.DataFrame
    provenance: Mapping[str, Any]

    def __post_init__(self):
        missing = {"example", "value"} - set(self.frame.columns)
        if missing:
            raise ValueError(
                f"a result needs the columns example and value, got {list(self.frame.columns)}"
            )
        # Once through JSON, so that what is loaded equals what was saved, and what JSON cannot
        # hold (NaN above all) is refused here, not hours later.
        plain = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
        object.__setattr__(self, "provenance", plain)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        same = (self.analysis, self.provenance) == (other.analysis, other.provenance)
        return same and self.frame.equals(other.frame)

    @property
    def seed(self) -> int:
        """Seed of the bootstrap draws: `seed` in the provenance, else 0."""
        return self.provenance.get("seed", 0)

    @property
    def examples(self) -> int:
        """How many examples the result rests on."""
        return len(set(self.frame["example"]))

    def where(self, **equal: Any) -> "Result":
        """The rows whose columns have the given values, with the same provenance."""
        keep = np.ones(len(self.frame), dtype=bool)
        for column, wanted in equal.items():
            keep &= np.asarray(self.frame[column] == wanted)
        frame = self.frame.loc[keep].reset_index(drop=True)
        return Result(self.analysis, frame, self.provenance)

    def mean(
        self, by: Sequence[str], *, resamples: int = RESAMPLES, seed: int | None = None
    ) -> pd.DataFrame:
        """Mean over examples per group, with a 95 % bootstrap interval.

        Examples are drawn, not rows: one draw decides for all groups, so that curves of one
        draw belong together. Values that are not finite are left out, and `n` shows it.

        Args:
            by: columns that make a group, such as `["layer", "module"]`.
            resamples: number of bootstrap draws.
            seed: of the draws, the result's own by default; the same seed, the same interval.

        Returns:
            One row per group, in order: the columns of `by`, then `mean`, `low`, `high`, `n`.
        """
        groups, values = self.matrix(by)
        counts = np.isfinite(values).sum(0)
        with np.errstate(invalid="ignore"):
            mean = np.nansum(values, 0) / counts
        ends = np.full((2, len(groups)), np.nan)
        some = counts > 1  # One example says nothing about the spread.
        if some.any():
            seed = self.seed if seed is None else seed
            ends[:, some] = interval(
                bootstrap_means(values[:, some], resamples=resamples, seed=seed)
            )
        return groups.assign(mean=mean, low=ends[0], high=ends[1], n=counts)

    def shares(self, by: Sequence[str]) -> pd.DataFrame:
        """Like `mean`, for values that are 0 or 1 per example, with Wilson's 95 % interval.

        A bootstrap interval of a share has no width where all examples agree; Wilson's has.
        """
        table = self.mean(by, resamples=1)
        counts = [
            (round(m * n) if n else 0, n)
            for m, n in zip(table["mean"], table["n"].tolist(), strict=True)
        ]
        low, high = zip(*(wilson(*pair) for pair in counts), strict=True)
        return table.assign(low=low, high=high)

    def matrix(self, by: Sequence[str]) -> tuple[pd.DataFrame, Float[np.ndarray, "example group"]]:
        """The groups, sorted, and each example's mean value in each of them (NaN: none)."""
        keys = pd.DataFrame(self.frame, columns=list(by))
        groups = keys.drop_duplicates().sort_values(list(by), ignore_index=True)
        column = pd.MultiIndex.from_frame(groups).get_indexer(pd.MultiIndex.from_frame(keys))
        row, examples = pd.factorize(self.frame["example"])
        value = np.asarray(self.frame["value"], dtype=float)
        there = np.isfinite(value)
        sums, counts = np.zeros((2, len(examples), len(groups)))
        np.add.at(sums, (row[there], column[there]), value[there])
        np.add.at(counts, (row[there], column[there]), 1)
        with np.errstate(invalid="ignore"):
            return groups, sums / counts

    def save(self, path: str | Path) -> Path:
        """Write a Parquet file, whole or not at all; the provenance is in its schema metadata."""
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        head = json.dumps(
            {"analysis": self.analysis, "provenance": self.provenance}, allow_nan=False
        )
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), METADATA_KEY: head.encode()}
        )
        with atomic_write(path) as file:
            pq.write_table(table, file, compression="zstd")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """The result that `save` wrote to `path`."""
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
        metadata = table.schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise ValueError(f"{path} is a Parquet file, but no result that attrib saved")
        return cls(frame=table.to_pandas(), **json.loads(metadata[METADATA_KEY]))


def tidy(values: Float[np.ndarray, "example ..."], **axes: Sequence[Any]) -> pd.DataFrame:
    """One row per cell of an array, with a column per axis and the column `value`.

    Args:
        values: the array.
        axes: the name of each axis and its labels, in order; the first is `example`.
    """
    labels = pd.MultiIndex.from_product([list(a) for a in axes.values()], names=list(axes))
    if values.shape != tuple(len(a) for a in axes.values()):
        raise ValueError(f"axes have {[len(a) for a in axes.values()]} labels for {values.shape}")
    return labels.to_frame(index=False).assign(value=np.asarray(values, dtype=float).ravel())
