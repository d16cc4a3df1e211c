"""VisEdit, Figure 4: where the model reads the picture before and after an edit."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from figures.edited_heat import (
    CONTROL,
    INPUTS,
    REPEAT,
    REQUEST,
    UNRELATED,
    measure_edited,
)
from figures.estimates import Estimate, all_hold, estimate
from figures.figure import Figure, Measured, Verdict
from figures.map_panels import HEAT_BAR, bar, beside, question, show_heat, show_image
from figures.measuring import resampled
from figures.rows import numbers, where, words
from figures.settling import settled
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_4"
LAYERS = 3
# Before the edit the heat of other words and of the other picture is much the same: one suffices.
SHOWN = ((REQUEST, 0), (REQUEST, 1), ("T-Gen", 1), ("V-Gen", 1), (UNRELATED, 0), (UNRELATED, 1))
IMAGES = {REQUEST: "request", "T-Gen": "request", "V-Gen": "other", UNRELATED: "unrelated"}
EDITED = INPUTS[:3]
WHEN = ("before", "after")


def draw(measured: Measured, style: Style) -> "Drawing":
    """A row per input of one edit, before and after; a column per layer; and all edits' numbers."""
    from attrib.plots.drawing import new_figure

    drawing = new_figure(11.6, 8.6)
    left, right = drawing.add_gridspec(1, 2, width_ratios=(2.1, 1))
    num = len(_layers_shown(measured))
    widths = [1.9, *[1] * (num + 1)]
    grid = np.asarray(left.subgridspec(len(SHOWN), num + 2, width_ratios=widths).subplots())
    shown = None
    for panels, (name, edited) in zip(grid, SHOWN, strict=True):
        titles = (name, edited) == SHOWN[0]
        shown = _row(list(panels), measured, name, edited, style, titles=titles)
    bar(drawing, shown, list(grid[:, 2:].ravel()), HEAT_BAR)
    above, below = np.asarray(right.subgridspec(2, 1).subplots()).tolist()
    _agreements(above, measured, style)
    _layers(below, measured, style)
    about = measured.about
    drawing.suptitle(
        f"Heat before and after a VisEdit edit behind layer {about['layer']} of {about['model']}; "
        f"right: all n = {about['n']} edits", fontsize=10.5, x=0.01, ha="left",
    )  # fmt: skip
    return settled(drawing)


def verdict(measured: Measured) -> Verdict:
    """Whether answers change while the heat stays nearer to itself than to another question's."""
    way, answers = moved(measured, "agreement"), followed(measured)
    own, other, noise = (
        by_input(measured, name, "agreement") for name in (REQUEST, CONTROL, REPEAT)
    )
    statistic = (
        f"answers followed the edit in {100 * answers.mean:.0f} % "
        f"[{100 * answers.low:.0f}, {100 * answers.high:.0f}] of requests, rephrases and other "
        f"pictures (n = {answers.n} edits). The heat before and after agrees with a rank "
        f"correlation of {own}; under other noise it would be {noise}, with another question about "
        f"the same picture {other}: the edit moves it {way} of the way from the one to the other. "
        f"On unrelated images the correlation is {by_input(measured, UNRELATED, 'agreement')}"
    )
    below = way.above(0.5)
    stays = None if below is None else not below
    return Verdict(all_hold(answers.above(0.5), stays), statistic)


def column(measured: Measured, name: str, of: str) -> "pd.Series":
    """A column of "changes" for one input, by example."""
    mine = where(measured.tables["changes"], input=name)
    return pd.Series(numbers(mine, of), index=words(mine, "example"))


def by_input(measured: Measured, name: str, of: str) -> Estimate:
    """The mean of a column for one input."""
    return estimate(column(measured, name, of).to_numpy())


def followed(measured: Measured) -> Estimate:
    """How many of an edit's request, rephrase and other picture are answered as it says."""
    parts = [column(measured, name, "answered") for name in EDITED]
    return estimate(np.mean(np.stack(parts), axis=0))


def moved(measured: Measured, of: str) -> Estimate:
    """How far an edit moves maps, from 0 (as far as other noise) to 1 (as another question).

    Over the examples that have another question; the interval is of the ratio of means. NaN where
    there is none, or where another question may look no different from other noise.
    """
    parts = [column(measured, name, of) for name in (REPEAT, REQUEST, CONTROL)]
    both = pd.concat(parts, axis=1).dropna().to_numpy(float)
    if not len(both):
        return Estimate(np.nan, np.nan, np.nan, 0)
    draws = np.vstack([both.mean(0), resampled(both)])
    gap = draws[:, 0] - draws[:, 2]
    if (gap <= 0).any():
        return Estimate(np.nan, np.nan, np.nan, len(both))
    ways = (draws[:, 0] - draws[:, 1]) / gap
    low, high = np.percentile(ways[1:], [2.5, 97.5])
    return Estimate(float(ways[0]), float(low), float(high), len(both))


def alt(measured: Measured) -> str:
    """The maps in words: the example's answers, and the means over all edits."""
    captions = measured.tables["captions"]
    first = captions[captions["number"] == 0].set_index("input")
    answers = "; ".join(
        f"{name}: {question(str(row['prompt']))} {row['before']} before, {row['after']} after"
        for name, row in first.iterrows()
    )
    means = ", ".join(
        f"{_said(name)} {by_input(measured, name, 'agreement')}"
        for name in (*INPUTS, REPEAT, CONTROL)
    )
    return (
        f"Heatmaps of one edit's inputs in layers {_layers_shown(measured)}, before and after. "
        f"{answers}. Mean rank correlation of the heat before and after over "
        f"{measured.about['n']} edits: {means}."
    )


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 4",
    "Heat before and after an edit, layer by layer",
    "After a counterfactual edit the model gives the new answer to the request, to a rephrase and "
    "to another picture, and yet reads the same part of the picture as before: the edit rewrites "
    "what is there, not where the model looks. On unrelated pictures nothing changes.",
    partial(measure_edited, name=NAME, shown={"color": 1}, num_layers=LAYERS),
    draw,
    verdict,
    alt,
)


def _row(
    axes: "list[Axes]", measured: Measured, name: str, edited: int, style: Style, *, titles: bool
) -> object:
    captions = measured.tables["captions"]
    said = [words(captions, of, number=0, input=name)[0] for of in ("prompt", WHEN[edited])]
    prompt, answer = question(said[0]), said[1]
    beside(axes[0], f"{WHEN[edited]}, {name}\n{prompt}\n{answer}", size=7.5, width=32)
    pixels = measured.images[f"0-{IMAGES[name]}"]
    show_image(axes[1], pixels, "picture" if titles else "")
    mine = where(measured.tables["maps"], number=0, input=name, edited=edited)
    shown = None
    for ax, layer in zip(axes[2:], _layers_shown(measured), strict=True):
        here = where(mine, layer=layer)
        shown = show_heat(ax, pixels, here, style, f"layer {layer}" if titles else "")
    return shown


def _layers_shown(measured: Measured) -> list[int]:
    return sorted({int(layer) for layer in measured.tables["maps"]["layer"]})


def _agreements(ax: "Axes", measured: Measured, style: Style) -> None:
    """The agreement of the heat before and after, by input, beside what would be none or much."""
    names = (REPEAT, *INPUTS, CONTROL)
    found = [by_input(measured, name, "agreement") for name in names]
    for i, (name, one) in enumerate(zip(names, found, strict=True)):
        kind = 2 if name in (REPEAT, CONTROL) else 0
        ends = [[one.mean - one.low], [one.high - one.mean]]
        ax.errorbar([one.mean], [i], xerr=ends, fmt=style.markers[kind], color=style.cycle[kind],
                    markersize=5)  # fmt: skip
    ax.set_yticks(range(len(names)), [_said(name) for name in names], fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("rank correlation of the heat,\nbefore and after; mean over layers", fontsize=8.5)


def _layers(ax: "Axes", measured: Measured, style: Style) -> None:
    """The same by layer."""
    table = measured.tables["layers"]
    for i, name in enumerate((REQUEST, UNRELATED, CONTROL)):
        x, y, low, high = (numbers(table, c, input=name) for c in ("layer", "mean", "low", "high"))
        ax.fill_between(x, low, high, color=style.cycle[i], alpha=0.2, linewidth=0)
        ax.plot(x, y, style.lines[i], marker=style.markers[i], color=style.cycle[i],
                markersize=4, label=_said(name))  # fmt: skip
    ax.set_xlabel("layer", fontsize=8.5)
    ax.set_ylabel("rank correlation", fontsize=8.5)
    if len(layers := measured.about["layers"]) < 12:
        ax.set_xticks(layers)
    ax.set_ylim(min(0.0, float(np.nanmin(numbers(table, "low")))), 1)
    ax.legend(fontsize=8)


def _said(name: str) -> str:
    return {REPEAT: "unedited, other noise", CONTROL: "unedited, other question",
            REQUEST: "request", "T-Gen": "other words", "V-Gen": "other picture",
            UNRELATED: "unrelated image"}[name]  # fmt: skip
