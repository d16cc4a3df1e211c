"""Statistics and panels of heatmaps before and after edits, shared by two figures."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from figures.estimates import Estimate, bootstrap_means, draw_estimates, estimate
from figures.figure import Measured
from figures.frames import floats, select_rows, strings
from figures.heatmap_before_after import CONTROL, INPUTS, REPEAT, REQUEST, UNRELATED
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EDITED = INPUTS[:3]  # the inputs that should follow the edit
WHEN = ("before", "after")
IMAGES = {REQUEST: "request", "T-Gen": "request", "V-Gen": "other", UNRELATED: "unrelated"}
# Before the edit, heat of the rephrase and of the other image is nearly that of the request.
SHOWN = ((REQUEST, 0), (REQUEST, 1), ("T-Gen", 1), ("V-Gen", 1), (UNRELATED, 0), (UNRELATED, 1))
COMPARED = (REPEAT, *INPUTS, CONTROL)
LABELS = {
    REPEAT: "unedited, other noise", CONTROL: "unedited, other question", REQUEST: "request",
    "T-Gen": "other words", "V-Gen": "other picture", UNRELATED: "unrelated image",
}  # fmt: skip


def column(measured: Measured, name: str, of: str) -> "pd.Series":
    """Return a column of "changes" for one input, by example."""
    rows = select_rows(measured.tables["changes"], input=name)
    return pd.Series(floats(rows, of), index=strings(rows, "example"))


def by_input(measured: Measured, name: str, of: str) -> Estimate:
    """Return the mean of a column of "changes" for one input."""
    return estimate(column(measured, name, of).to_numpy())


def answers_followed(measured: Measured) -> Estimate:
    """Return the share of requests, rephrases and other images that are answered as edited."""
    parts = [column(measured, name, "answered") for name in EDITED]
    return estimate(np.mean(np.stack(parts), axis=0))


def moved_share(measured: Measured, of: str) -> Estimate:
    """Return how far an edit moves maps, from 0 (as far as other noise) to 1 (another question).

    The estimate is over the examples that have another question; the interval is that of the ratio
    of means. NaN without such examples, or if another question may differ no more than other noise.
    """
    parts = [column(measured, name, of) for name in (REPEAT, REQUEST, CONTROL)]
    values = pd.concat(parts, axis=1).dropna().to_numpy(float)
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan, 0)
    means = np.vstack([values.mean(0), bootstrap_means(values)])
    gap = means[:, 0] - means[:, 2]
    if (gap <= 0).any():
        return Estimate(np.nan, np.nan, np.nan, len(values))
    shares = (means[:, 0] - means[:, 1]) / gap
    low, high = np.percentile(shares[1:], [2.5, 97.5])
    return Estimate(float(shares[0]), float(low), float(high), len(values))


def stays(moved: Estimate) -> bool | None:
    """Return whether maps move less than half of the way to those of another question."""
    beyond = moved.above(0.5)
    return None if beyond is None else not beyond


def draw_comparisons(ax: "Axes", measured: Measured, of: str, label: str, style: Style) -> None:
    """Draw the mean of a column of "changes" per comparison; controls have another colour."""
    for i, name in enumerate(COMPARED):
        series = 2 if name in (REPEAT, CONTROL) else 0
        draw_estimates(ax, [i], [by_input(measured, name, of)], style, series)
    list_on_y(ax, [LABELS[name] for name in COMPARED], label)


def list_on_y(ax: "Axes", labels: list[str], label: str) -> None:
    """Label rows from top to bottom, for shares from 0 to 1 on the x axis."""
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel(label, fontsize=8.5)
