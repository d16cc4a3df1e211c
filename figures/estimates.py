"""Means with 95 % intervals, as verdicts and drawings use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float

from attrib import stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from figures.style import Style

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over n examples with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return self.to(2)

    def to(self, digits: int) -> str:
        """Format with a number of decimals: "0.52 [0.47, 0.57]"."""
        if not np.isfinite(self.mean):
            return "no value"
        if not np.isfinite(self.low):
            return f"{self.mean:.{digits}f} (no interval)"
        mean, low, high = (f"{x:.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"

    def above(self, value: float | int) -> bool | None:
        """Return whether the interval lies above a value; None if it contains the value."""
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return None
        if self.low > value:
            return True
        return False if self.high < value else None


def mean_interval(
    values: Float[np.ndarray, "example *group"], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over examples and the ends of its 95 % bootstrap interval, ignoring NaN."""
    low, high = stats.interval(bootstrap_means(values, seed=seed))
    return np.asarray(np.nanmean(values, axis=0)), low, high


def bootstrap_means(
    values: Float[np.ndarray, "example *group"], *, seed: int = 0
) -> Float[np.ndarray, "draw *group"]:
    """Return the means of resampled examples; all groups share the resamples."""
    flat = np.asarray(values, float).reshape(len(values), -1)
    draws = stats.bootstrap_means(flat, resamples=RESAMPLES, seed=seed)
    return draws.reshape(RESAMPLES, *np.shape(values)[1:])


def peak(values: Float[np.ndarray, "example layer"], *, seed: int = 0) -> tuple[int, np.ndarray]:
    """Return the column with the highest mean, and that of each bootstrap resample."""
    draws = bootstrap_means(values, seed=seed)
    return int(np.nanargmax(np.nanmean(values, axis=0))), np.nanargmax(draws, axis=1)


def estimate(values: Float[np.ndarray, " example"], *, seed: int = 0) -> Estimate:
    """Return the mean of the finite values with its bootstrap interval (NaN below two values)."""
    known = np.asarray(values, float)[np.isfinite(values)]
    if len(known) < 2:
        return Estimate(float(known.mean()) if len(known) else np.nan, np.nan, np.nan, len(known))
    mean, low, high = (float(one) for one in mean_interval(known, seed=seed))
    return Estimate(mean, low, high, len(known))


def proportion(held: Bool[np.ndarray, " example"]) -> Estimate:
    """Return the share of True with Wilson's interval."""
    n = len(held)
    share = float(np.mean(held)) if n else np.nan
    return Estimate(share, *stats.wilson(int(np.sum(held)), n), n)


def count_text(held: Bool[np.ndarray, " example"], of: str) -> str:
    """Return "8 of 10 OF (95 % interval of the share [...])"."""
    found = proportion(held)
    share = f"[{found.low:.3f}, {found.high:.3f}]" if found.n else "no examples"
    return f"{int(np.sum(held))} of {found.n} {of} (95 % interval of the share {share})"


def all_hold(*found: bool | None) -> bool | None:
    """Return False if one is False, else None if one is None, else True."""
    if any(one is False for one in found):
        return False
    return None if any(one is None for one in found) else True


def draw_estimates(
    ax: "Axes",
    at: Sequence[float] | np.ndarray,
    found: Sequence[Estimate],
    style: "Style",
    series: int = 0,
    *,
    label: str | None = None,
    along: Literal["x", "y"] = "x",
) -> None:
    """Draw means as markers with their intervals as whiskers along an axis.

    Args:
        ax: The axes.
        at: Positions on the other axis.
        found: Estimates; if no mean is finite, nothing is drawn.
        style: Colours and markers.
        series: Index of the colour and of the marker.
        label: Entry in the legend.
        along: The axis of the values.
    """
    middle = np.array([one.mean for one in found])
    if not np.isfinite(middle).any():
        return
    ends = np.array([[one.mean - one.low, one.high - one.mean] for one in found]).T.clip(min=0)
    horizontal = along == "x"
    x, y = (middle, at) if horizontal else (at, middle)
    ax.errorbar(x, y, xerr=ends if horizontal else None, yerr=None if horizontal else ends,
                fmt=style.markers[series], color=style.cycle[series], markersize=5,
                label=label)  # fmt: skip
