"""The result of one analysis: tidy tables with provenance, figures and a summary."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from attrib.errors import AttribError
from attrib.files import atomic_write
from attrib.stats import RESAMPLES, bootstrap_means, interval, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.pipeline.analysis import Analysis

METADATA_KEY = b"attrib"
MAIN_FILE = "result.parquet"  # a run's main table; its other tables lie beside it
HTML_ROWS = 5


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """One analysis over many examples.

        result.plot()      # an Axes
        result.summary()   # sentences
        result.to_frame()  # a tidy DataFrame

    Attributes:
        analysis: name of the analysis.
        frame: one row per example x layer x ...; columns `example`, `value` and what the
            analysis varies (`layer`, `module`, ...).
        provenance: everything needed to run it again (model, options, versions, data), for JSON.
        tables: the other tables of the run, by name.
        samples: the samples of the run, for figures that show their images; not saved.
        quarantined: records of the rows that could not be used; saved by the run, not with a table.
    """

    analysis: str
    frame: pd.DataFrame
    provenance: Mapping[str, Any]
    tables: Mapping[str, "Result"] = field(default_factory=dict)
    samples: Sequence[Any] = ()
    quarantined: Sequence[Any] = ()

    def __post_init__(self):
        if missing := {"example", "value"} - set(self.frame.columns):
            raise ValueError(f"a result needs the columns example and value: {missing} missing")
        # Through JSON and back: what is loaded equals what was saved, and what JSON cannot hold
        # (NaN above all) is refused now, not hours later.
        plain = json.loads(json.dumps(dict(self.provenance), allow_nan=False))
        object.__setattr__(self, "provenance", plain)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        same = (self.analysis, self.provenance) == (other.analysis, other.provenance)
        return same and self.frame.equals(other.frame)

    def __repr__(self) -> str:
        model = self.provenance.get("model", {}).get("name", "")
        about = f" of {model}" if model else ""
        more = f", tables {', '.join(self.tables)}" if self.tables else ""
        columns = ", ".join(map(str, self.frame.columns))
        counts = f"{len(self.frame)} rows, {self.examples} examples"
        return f"Result({self.analysis!r}{about}: {counts}, columns {columns}{more})"

    def _repr_html_(self) -> str:
        """The summary, the main figure and the first rows, for notebooks."""
        rows = self.frame.head(HTML_ROWS).to_html(index=False, float_format="{:.4g}".format)
        try:
            shown = self._view().html(self) if len(self.frame) else ""
        except AttribError:  # a table of no analysis
            shown = ""
        return f"{shown}{rows}<p>{len(self.frame)} rows, {self.examples} examples</p>"

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table: tidy, one row per value."""
        return self.frame.copy()

    def plot(self, figure: str | None = None) -> "Axes":
        """Draw a figure of the analysis.

        Args:
            figure: its name, by default the main one; `figures` lists them.

        Raises:
            AttribError: There is no such figure, or no analysis of this name.
        """
        drawn = self._view().plots(self)
        name = next(iter(drawn)) if figure is None else figure
        if name not in drawn:
            raise AttribError(f"no figure {figure!r}; figures of {self.analysis} are {list(drawn)}")
        return drawn[name]()

    @property
    def figures(self) -> list[str]:
        """Names of the figures that `plot` can draw."""
        return list(self._view().plots(self))

    def summary(self) -> str:
        """What the result shows, in a few sentences.

        Raises:
            AttribError: There is no analysis of this name.
        """
        return self._view().summarize(self)

    def _view(self) -> "Analysis":
        """The analysis, with the options that the result was made with."""
        # Drawing is an optional integration: imported when it is asked for, as pandas does.
        from attrib.pipeline import analysis_of

        return analysis_of(self)

    @property
    def seed(self) -> int:
        """Seed of the bootstrap draws: `seed` in the provenance, else 0."""
        return self.provenance.get("seed", 0)

    @property
    def examples(self) -> int:
        """How many examples the result rests on."""
        return len(set(self.frame["example"]))

    def where(self, **equal: Any) -> "Result":
        """The rows whose columns equal the given values, with the same provenance."""
        keep = np.ones(len(self.frame), dtype=bool)
        for column, wanted in equal.items():
            keep &= np.asarray(self.frame[column] == wanted)
        return replace(self, frame=self.frame.loc[keep].reset_index(drop=True))

    def mean(
        self, by: Sequence[str], *, resamples: int = RESAMPLES, seed: int | None = None
    ) -> pd.DataFrame:
        """Mean over examples per group, with a 95 % bootstrap interval over examples.

        All groups share the draws. Values that are not finite are ignored; `n` counts the others.

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
        some = counts > 1  # one example has no spread
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
        key = np.zeros(len(self.frame), dtype=np.int64)
        for name in by:
            code, labels = pd.factorize(self.frame[name], sort=True, use_na_sentinel=False)
            key = key * len(labels) + code
        _, first, column = np.unique(key, return_index=True, return_inverse=True)
        row, examples = pd.factorize(self.frame["example"])
        value = np.asarray(self.frame["value"], dtype=float)
        there, size = np.isfinite(value), len(examples) * len(first)
        cell = (row * len(first) + column)[there]
        sums, counts = np.bincount(cell, value[there], size), np.bincount(cell, minlength=size)
        groups = pd.DataFrame(self.frame, columns=list(by)).iloc[first].reset_index(drop=True)
        with np.errstate(invalid="ignore"):
            return groups, (sums / counts).reshape(len(examples), len(first))

    def save(self, path: str | Path) -> Path:
        """Write a Parquet file, whole or not at all; the provenance is in its schema metadata."""
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        head = {"analysis": self.analysis, "provenance": self.provenance}
        ours = {METADATA_KEY: json.dumps(head, allow_nan=False).encode()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **ours})
        with atomic_write(path) as file:
            pq.write_table(table, file, compression="zstd")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """The result that `save` wrote, with the other tables of its run.

        Args:
            path: a Parquet file, or the folder of a run.

        Raises:
            ValueError: It is not a whole Parquet file, or not one of attrib.
        """
        path = Path(path)
        file = path / MAIN_FILE if path.is_dir() else path
        main = cls._load_one(file)
        if file.name != MAIN_FILE:
            return main
        others = sorted(p for p in file.parent.glob("*.parquet") if p != file)
        return replace(main, tables={p.stem: cls._load_one(p) for p in others})

    @classmethod
    def _load_one(cls, path: Path) -> "Result":
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
        metadata = table.schema.metadata or {}
        if METADATA_KEY not in metadata:
            raise ValueError(f"{path} is a Parquet file, but not a result of attrib")
        return cls(frame=table.to_pandas(), **json.loads(metadata[METADATA_KEY]))


def tidy(values: Float[np.ndarray, "example ..."], **axes: Sequence[Any]) -> pd.DataFrame:
    """One row per cell of an array, with a column per axis and the column `value`.

    Args:
        values: the array.
        axes: the name of each axis and its labels, in order; the first is `example`.
    """
    if values.shape != tuple(len(a) for a in axes.values()):
        raise ValueError(f"axes have {[len(a) for a in axes.values()]} labels for {values.shape}")
    places = np.indices(values.shape).reshape(values.ndim, -1)
    columns = [pd.Index([*a]).take(place) for a, place in zip(axes.values(), places, strict=True)]
    table = pd.DataFrame(dict(zip(axes, columns, strict=True)))
    return table.assign(value=np.asarray(values, dtype=float).ravel())
