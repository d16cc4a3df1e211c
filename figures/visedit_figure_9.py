"""VisEdit, Figure 9: more heatmaps before and after edits."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from figures.before_after_statistics import (
    COMPARED,
    EDITED,
    IMAGES,
    SHOWN,
    WHEN,
    answers_followed,
    by_input,
    column,
    draw_comparisons,
    list_on_y,
    moved_share,
    stays,
)
from figures.estimates import all_hold, draw_estimates, estimate
from figures.figure import Figure, Measured, Verdict
from figures.frames import select_rows, strings
from figures.heatmap_before_after import CONTROL, REPEAT, REQUEST, UNRELATED, measure_edited
from figures.image_panels import (
    HEAT_LABEL,
    add_colorbar,
    add_heading,
    caption_panel,
    show_heatmap,
    show_image,
)
from figures.scene_objects import question_text
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_9"
EXAMPLES = {"shape": 1, "place": 1, "object": 1}


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a row of heatmaps per edit, and below it how much of the heat stays in place."""
    from attrib.plots.drawing import new_figure

    num = len(set(measured.tables["captions"]["number"]))
    drawing = new_figure(11.6, 1.8 * num + 3.0)
    above, below = drawing.add_gridspec(2, 1, height_ratios=[1.8 * num + 0.4, 2.6])
    widths = [1.4, *[1] * (len(SHOWN) + 1)]
    grid = above.subgridspec(num, len(widths), width_ratios=widths).subplots(squeeze=False)
    shown = [_draw_row(list(axes), measured, number, style) for number, axes in enumerate(grid)]
    add_colorbar(drawing, shown[-1], list(grid[:, 2:].ravel()), HEAT_LABEL)
    left, right = np.asarray(below.subgridspec(1, 2).subplots()).tolist()
    label = "share of the hottest tenth of visual tokens that stays hottest"
    draw_comparisons(left, measured, "kept", label, style)
    for i, when in enumerate(WHEN):
        found = [by_input(measured, name, f"mass_{when}") for name in EDITED]
        places = np.arange(len(EDITED)) + 0.16 * (i - 0.5)
        draw_estimates(right, places, found, style, i, label=f"{when} the edit")
    list_on_y(right, list(EDITED), "share of the heat on the object asked about")
    right.legend(fontsize=8, loc="upper right")
    about = measured.about
    add_heading(
        drawing,
        f"Heat before and after VisEdit edits at layer {about['layer']} of {about['model']}, "
        f"n = {about['n']} edits",
    )
    return drawing


def verdict(measured: Measured) -> Verdict:
    """Check that answers change while the hottest visual tokens stay the hottest."""
    answers, moved = answers_followed(measured), moved_share(measured, "kept")
    kept = {name: by_input(measured, name, "kept") for name in (REQUEST, REPEAT, CONTROL)}
    before, after = (column(measured, REQUEST, f"mass_{when}").to_numpy() for when in WHEN)
    unrelated = by_input(measured, UNRELATED, "answered")
    statistic = (
        f"answers followed the edit in {answers} of requests, rephrases and other pictures, and "
        f"unrelated images kept theirs in {unrelated} (n = {answers.n} edits). Of the hottest "
        f"tenth of the visual tokens {kept[REQUEST]} stay hottest; with another noise seed alone "
        f"it would be {kept[REPEAT]}, with another question about the same picture "
        f"{kept[CONTROL]}: the edit moves them {moved} of the way between the two. The share of "
        f"the heat on the object asked about goes from {estimate(before)} to {estimate(after)}, by "
        f"{estimate(after - before)} (n = {estimate(after).n} edits about one object)"
    )
    return Verdict(all_hold(answers.above(0.5), stays(moved)), statistic)


def alt(measured: Measured) -> str:
    """Describe the edits shown, and the statistics over all edits."""
    captions = measured.tables["captions"]
    edits = "; ".join(
        f"{question_text(str(row['prompt']))} {row['before']} before, {row['after']} after"
        for _, row in captions[captions["input"] == REQUEST].iterrows()
    )
    kept = ", ".join(f"{name} {by_input(measured, name, 'kept')}" for name in COMPARED)
    mass = ", ".join(
        f"{name} {by_input(measured, name, 'mass_before')} before and "
        f"{by_input(measured, name, 'mass_after')} after"
        for name in EDITED
    )
    return (
        f"Heatmaps of edits before and after: {edits}. Share of the hottest tenth of visual tokens "
        f"that stays hottest: {kept}. Share of the heat on the object: {mass}."
    )


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 9",
    "More heat before and after edits",
    "In more counterfactual edits the parts of the picture that contribute most stay the same, "
    "while the answers to the request and to its rephrase and other picture change; the edit has "
    "made these parts into ones that lead to the new answer.",
    partial(measure_edited, name=NAME, shown=EXAMPLES, num_layers=0),
    draw,
    verdict,
    alt,
    published="the answers change, the parts that contribute most do not",
)


def _draw_row(axes: "list[Axes]", measured: Measured, number: int, style: Style) -> object:
    captions = select_rows(measured.tables["captions"], number=number)
    prompt, target = (strings(captions, of, input=REQUEST)[0] for of in ("prompt", "target"))
    caption_panel(axes[0], f"{question_text(prompt)}\nedit: {target}", size=8, width=24)
    show_image(axes[1], measured.images[f"{number}-request"], "" if number else "picture")
    shown = None
    for ax, (name, edited) in zip(axes[2:], SHOWN, strict=True):
        cells = select_rows(measured.tables["maps"], number=number, input=name, edited=edited)
        title = "" if number else f"{WHEN[edited]},\n{name}"
        pixels = measured.images[f"{number}-{IMAGES[name]}"]
        answer = strings(captions, WHEN[edited], input=name)[0]
        shown = show_heatmap(ax, pixels, cells, style, title, answer)
    return shown
