"""VisEdit, Figure 9: more heat before and after edits."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from figures.edited_heat import CONTROL, INPUTS, REPEAT, REQUEST, UNRELATED, measure_edited
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Verdict
from figures.map_panels import HEAT_BAR, bar, beside, question, show_heat, show_image
from figures.rows import where, words
from figures.settling import settled
from figures.style import Style
from figures.visedit_figure_4 import EDITED, IMAGES, by_input, column, followed, moved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_9"
SHOWN = {"shape": 1, "place": 1, "object": 1}
COLUMNS = ((REQUEST, 0), (REQUEST, 1), ("T-Gen", 1), ("V-Gen", 1), (UNRELATED, 0), (UNRELATED, 1))
WHEN = ("before", "after")


def draw(measured: Measured, style: Style) -> "Drawing":
    """A row per edit with its heat before and after; below, how much of the heat stays where."""
    from attrib.plots.drawing import new_figure

    num = len(set(measured.tables["captions"]["number"]))
    drawing = new_figure(11.6, 1.8 * num + 3.0)
    above, below = drawing.add_gridspec(2, 1, height_ratios=[1.8 * num + 0.4, 2.6])
    widths = [1.4, *[1] * (len(COLUMNS) + 1)]
    grid = above.subgridspec(num, len(widths), width_ratios=widths).subplots(squeeze=False)
    shown = None
    for number, panels in enumerate(grid):
        shown = _row(list(panels), measured, number, style)
    bar(drawing, shown, list(grid[:, 2:].ravel()), HEAT_BAR)
    left, right = np.asarray(below.subgridspec(1, 2).subplots()).tolist()
    _kept(left, measured, style)
    _mass(right, measured, style)
    about = measured.about
    drawing.suptitle(
        f"Heat before and after VisEdit edits behind layer {about['layer']} of {about['model']}, "
        f"n = {about['n']} edits", fontsize=10.5, x=0.01, ha="left",
    )  # fmt: skip
    return settled(drawing)


def verdict(measured: Measured) -> Verdict:
    """Whether answers change while the hottest visual tokens stay the hottest."""
    answers, way = followed(measured), moved(measured, "kept")
    kept = {name: by_input(measured, name, "kept") for name in (REQUEST, REPEAT, CONTROL)}
    before, after = (column(measured, REQUEST, f"mass_{when}").to_numpy() for when in WHEN)
    unrelated = by_input(measured, UNRELATED, "answered")
    statistic = (
        f"answers followed the edit in {answers} of requests, rephrases and other pictures, and "
        f"unrelated images kept theirs in {unrelated} (n = {answers.n} edits). Of the hottest "
        f"tenth of the visual tokens {kept[REQUEST]} stay among the hottest; under other noise it "
        f"would be {kept[REPEAT]}, with another question about the same picture "
        f"{kept[CONTROL]}: the edit moves them {way} of the way. The share of the heat on the "
        f"object asked about goes from {estimate(before)} to {estimate(after)}, by "
        f"{estimate(after - before)} "
        f"(n = {estimate(after).n} edits about one object)"
    )
    below = way.above(0.5)
    stays = None if below is None else not below
    return Verdict(all_hold(answers.above(0.5), stays), statistic)


def alt(measured: Measured) -> str:
    """The maps in words: the shown edits, and how much stays where over all edits."""
    captions = measured.tables["captions"]
    mine = captions[captions["input"] == REQUEST]
    edits = "; ".join(
        f"{question(str(row['prompt']))} {row['before']} before, {row['after']} after"
        for _, row in mine.iterrows()
    )
    kept = ", ".join(
        f"{name} {by_input(measured, name, 'kept')}" for name in (*INPUTS, REPEAT, CONTROL)
    )
    mass = ", ".join(
        f"{name} {by_input(measured, name, 'mass_before')} before and "
        f"{by_input(measured, name, 'mass_after')} after"
        for name in EDITED
    )
    return (
        f"Heatmaps of edits before and after: {edits}. Share of the hottest tenth of visual tokens "
        f"that stay among the hottest: {kept}. Share of the heat on the object: {mass}."
    )


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 9",
    "More heat before and after edits",
    "In more counterfactual edits the parts of the picture that contribute most stay the same, "
    "while the answers to the request and to its rephrase and other picture change; the edit has "
    "made these parts into ones that lead to the new answer.",
    partial(measure_edited, name=NAME, shown=SHOWN, num_layers=0),
    draw,
    verdict,
    alt,
)


def _row(axes: "list[Axes]", measured: Measured, number: int, style: Style) -> object:
    captions = where(measured.tables["captions"], number=number)
    prompt, target = (words(captions, of, input=REQUEST)[0] for of in ("prompt", "target"))
    beside(axes[0], f"{question(prompt)}\nedit: {target}", size=8, width=24)
    show_image(axes[1], measured.images[f"{number}-request"], "" if number else "picture")
    shown = None
    for ax, (name, edited) in zip(axes[2:], COLUMNS, strict=True):
        here = where(measured.tables["maps"], number=number, input=name, edited=edited)
        title = "" if number else f"{WHEN[edited]},\n{name}"
        pixels = measured.images[f"{number}-{IMAGES[name]}"]
        answer = words(captions, WHEN[edited], input=name)[0]
        shown = show_heat(ax, pixels, here, style, title, answer)
    return shown


def _kept(ax: "Axes", measured: Measured, style: Style) -> None:
    names = (REPEAT, *INPUTS, CONTROL)
    found = [by_input(measured, name, "kept") for name in names]
    for i, (name, one) in enumerate(zip(names, found, strict=True)):
        kind = 2 if name in (REPEAT, CONTROL) else 0
        ends = [[one.mean - one.low], [one.high - one.mean]]
        ax.errorbar([one.mean], [i], xerr=ends, fmt=style.markers[kind], color=style.cycle[kind],
                    markersize=5)  # fmt: skip
    ax.set_yticks(range(len(names)), ["unedited, other noise", *INPUTS, "another question"],
                  fontsize=8)  # fmt: skip
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("share of the hottest tenth of visual tokens that stay so", fontsize=8.5)


def _mass(ax: "Axes", measured: Measured, style: Style) -> None:
    for i, when in enumerate(WHEN):
        found = [by_input(measured, name, f"mass_{when}") for name in EDITED]
        middle = np.array([one.mean for one in found])
        ends = np.stack([[one.mean - one.low, one.high - one.mean] for one in found], 1)
        at = np.arange(len(EDITED)) + 0.16 * (i - 0.5)
        if np.isfinite(middle).any():
            ax.errorbar(middle, at, xerr=ends.clip(min=0), fmt=style.markers[i],
                        color=style.cycle[i], markersize=5, label=f"{when} the edit")  # fmt: skip
    ax.set_yticks(range(len(EDITED)), EDITED, fontsize=8)
    ax.set_ylim(len(EDITED) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("share of the heat on the object asked about", fontsize=8.5)
    ax.legend(fontsize=8, loc="upper right")
