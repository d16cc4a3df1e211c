"""Numbers with their intervals, as verdicts and tables say them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from figures.measuring import mean_interval

Z = 1.959964  # of a normal distribution, 95 %


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return self.to(2)

    def to(self, digits: int) -> str:
        """In words, with so many digits behind the point."""
        if not np.isfinite(self.mean):
            return "no value"
        if not np.isfinite(self.low):
            return f"{self.mean:.{digits}f} (no interval)"
        mean, low, high = (f"{x:.{digits}f}" for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"

    def above(self, value: float | int) -> bool | None:
        """Whether it lies above a value; None where the interval holds that value."""
        if not (np.isfinite(self.low) and np.isfinite(self.high)):
            return None
        if self.low > value:
            return True
        return False if self.high < value else None


def estimate(values: Float[np.ndarray, " example"], *, seed: int = 0) -> Estimate:
    """The mean of the finite values and its bootstrap interval (NaN for fewer than two)."""
    known = np.asarray(values, float)[np.isfinite(values)]
    if len(known) < 2:
        return Estimate(float(known.mean()) if len(known) else np.nan, np.nan, np.nan, len(known))
    mean, low, high = (float(one) for one in mean_interval(known, seed=seed))
    return Estimate(mean, low, high, len(known))


def proportion(held: Bool[np.ndarray, " example"]) -> Estimate:
    """The share of examples that hold, with Wilson's interval: also where it is 0 or 1."""
    n = len(held)
    if not n:
        return Estimate(np.nan, np.nan, np.nan, 0)
    share = float(np.mean(held))
    middle, width = (share + Z**2 / (2 * n)) / (1 + Z**2 / n), Z / (1 + Z**2 / n)
    spread = width * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, float(middle - spread)), min(1.0, float(middle + spread)), n)


def counted(held: Bool[np.ndarray, " example"], of: str) -> str:
    """In words how many of the examples hold, with the interval of their share."""
    found = proportion(held)
    share = f"[{found.low:.3f}, {found.high:.3f}]" if found.n else "no examples"
    return f"{int(np.sum(held))} of {found.n} {of} (95 % interval of the share {share})"


def all_hold(*found: bool | None) -> bool | None:
    """False if one does not hold; else None if one cannot be told."""
    if any(one is False for one in found):
        return False
    return None if any(one is None for one in found) else True
