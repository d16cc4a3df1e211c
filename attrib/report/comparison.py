"""Two runs of one analysis compared on the examples that they share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attrib.errors import AttribError
from attrib.results import Result
from attrib.runs.manifest import flatten
from attrib.stats import RESAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What tables vary within an example, coarse to fine. Tokens are not compared one by one.
AXES = (
    "protocol", "metric", "method", "relation", "modality", "sigma", "span", "module", "statistic",
    "layer",
)  # fmt: skip
# Settings of a run that change its numbers; a model is also among the options.
SETTINGS = ("model", "data", "options")
IGNORED = frozenset(
    f"options.{name}" for name in ("out", "batch_size", "device", "device_map", "model")
) | {"model.class", "model.fingerprint", "model.device"}  # fmt: skip
MOST_DIFFERENCES, LONGEST_VALUE = 6, 24


@dataclass(frozen=True, eq=False)
class Comparison:
    """Paired differences of two results.

    Attributes:
        analysis: Name of the table that both have.
        frame: A row per group: the columns of `by`, then `one` and `other` (means over the shared
            examples), `difference` (one - other), `low` and `high` (95 % bootstrap interval over
            examples) and `n` (examples).
        by: The columns that make a group.
        shared: Number of examples that both have.
        examples: Number of examples of each.
        unmatched: Number of groups that only one of them has, such as layers of a deeper model.
        settings: What differs in their provenance: name -> values of both.
    """

    analysis: str
    frame: pd.DataFrame
    by: tuple[str, ...]
    shared: int
    examples: tuple[int, int]
    unmatched: int
    settings: Mapping[str, tuple[Any, Any]]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the difference over the layers, a curve per group with its interval."""
        from attrib.plots.curves import differences

        return differences(self.frame, [name for name in self.by if name != "layer"], ax)

    def summary(self) -> str:
        """What was compared, and where the interval excludes zero, in a few sentences."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        yield f"{self.analysis}: {self.shared} shared examples of {self.examples[0]} and "\
              f"{self.examples[1]}."  # fmt: skip
        if self.unmatched:
            yield f"{self.unmatched} groups are in one of the two only and are left out."
        changed = [
            f"{n} ({_short(one)} / {_short(other)})" for n, (one, other) in self.settings.items()
        ]
        more = len(changed) - MOST_DIFFERENCES
        tail = [f"and {more} more"] if more > 0 else []
        yield f"They differ in {', '.join(changed[:MOST_DIFFERENCES] + tail) or 'no setting'}."
        sure = self.frame[(self.frame["low"] > 0) | (self.frame["high"] < 0)]
        yield (
            f"The 95 % interval of the difference excludes 0 in {len(sure)} of {len(self.frame)} "
            "groups; about 1 in 20 would without any difference."
        )
        if len(sure):
            row = sure.iloc[int(np.abs(np.asarray(sure["difference"])).argmax())]
            where = ", ".join(f"{name} {row[name]}" for name in self.by)
            yield (
                f"The largest of them: {row['difference']:+.4g} ({row['low']:.4g} to "
                f"{row['high']:.4g}) at {where}."
            )

    def _repr_html_(self) -> str:
        from html import escape

        table = self.frame.to_html(index=False, float_format="{:.4g}".format, max_rows=12)
        return f"<p>{escape(self.summary())}</p>{table}"


def compare(
    one: Result,
    other: Result,
    *,
    by: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two results of one analysis, example by example.

    Two models, two prompts or a model before and after an edit, run on the same data: each example
    is its own control, so that the interval of the difference is narrower than those of the means.

    Args:
        one: A result.
        other: Another one of the same analysis.
        by: Columns that make a group; by default all that the analysis varies (layer, module,
            sigma, ...). Values of an example within a group are averaged.
        resamples: Number of bootstrap draws.
        seed: Of the draws, which all groups share.

    Raises:
        AttribError: The results are of two analyses, share no example or no group, or lack a column
            of `by`.
    """
    if one.analysis != other.analysis:
        raise AttribError(f"{one.analysis} cannot be compared with {other.analysis}")
    groups = _columns(one, other, by)
    sides = [_means(one, groups, "one"), _means(other, groups, "other")]
    pairs = sides[0].merge(sides[1], on=["example", *groups])
    if pairs.empty:
        raise AttribError(_nothing_shared(one, other))
    # The same pairs make the same groups, in the same order.
    one_mean, other_mean, found = (
        Result("mean", pairs.assign(value=values), {}).mean(groups, resamples=draws, seed=seed)
        for values, draws in (
            (pairs["one"], 1), (pairs["other"], 1), (pairs["one"] - pairs["other"], resamples),
        )
    )  # fmt: skip
    means = found[list(groups)].assign(one=one_mean["mean"], other=other_mean["mean"])
    statistics = found.rename(columns={"mean": "difference"})[["difference", "low", "high", "n"]]
    frame = pd.concat([means, statistics], axis=1)
    known = [len(side.drop_duplicates(groups)) for side in sides]
    return Comparison(
        one.analysis,
        frame,
        tuple(groups),
        len(set(pairs["example"])),
        (one.examples, other.examples),
        sum(known) - 2 * len(frame),
        _changed(one.provenance, other.provenance),
    )


def _columns(one: Result, other: Result, by: Sequence[str] | None) -> list[str]:
    there = [name for name in one.frame if name in other.frame]
    if by is None:
        by = [name for name in AXES if name in there]
    if missing := [name for name in by if name not in there]:
        known = ", ".join(name for name in map(str, there) if name not in ("example", "value"))
        raise AttribError(f"both results have no column {missing[0]!r}; they share {known}")
    if not by:
        raise AttribError(f"the tables of {one.analysis} share no column that makes a group")
    return list(by)


def _means(result: Result, groups: Sequence[str], name: str) -> pd.DataFrame:
    """The mean value by example and group, as a column; values that are not finite are ignored."""
    finite = result.frame.loc[np.isfinite(np.asarray(result.frame["value"], float))]
    by = ["example", *groups]
    means = finite.groupby(by, sort=False, dropna=False, as_index=False)[["value"]].mean()
    return pd.DataFrame(means).rename(columns={"value": name})


def _nothing_shared(one: Result, other: Result) -> str:
    if set(one.frame["example"]) & set(other.frame["example"]):
        return "the two results share examples, but no group of values"
    return "the two results share no example; run both on the same data, split and rows"


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by dotted name."""
    parts = [{n: made[n] for n in SETTINGS if n in made} for made in (one, other)]
    flat = [dict(flatten(part)) for part in parts]
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in {**flat[0], **flat[1]}}
    return {
        name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in IGNORED
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
