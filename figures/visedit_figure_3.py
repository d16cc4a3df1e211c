"""VisEdit, Figure 3: the influence mapper over images of an edit and over unrelated ones."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from figures.estimates import Estimate, all_hold, draw_estimates, estimate
from figures.figure import Figure, Measured, Verdict
from figures.frames import floats, select_rows, strings
from figures.image_panels import (
    Scale,
    add_colorbar,
    add_heading,
    caption_panel,
    show_image,
    show_map,
)
from figures.influence_maps import HEAT, measure_mapper
from figures.scene_objects import question_text
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_3"
SHOWN = {"color": 1, "shape": 1, "place": 1}
COLUMNS = {"request": "request", "other picture": "other", "unrelated image": "unrelated"}
PARTS = {"on_asked": "object asked about", "on_others": "other objects", "elsewhere": "background"}


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a row per edit: text, image, the mapper on three images, its training heatmap."""
    from attrib.plots.drawing import new_figure

    captions = measured.tables["captions"]
    drawing = new_figure(11.6, 1.6 * len(captions) + 0.7)
    widths = (1.25, 1, 1, 1, 1, 1, 0.2, 1.6)
    grid = drawing.add_gridspec(len(captions), len(widths), width_ratios=widths)
    rows = [
        [drawing.add_subplot(grid[row, col]) for col in range(6)] for row in range(len(captions))
    ]
    scale = Scale(0.0, float(floats(measured.tables["maps"], "value", map=tuple(COLUMNS)).max()))
    texts, shown = [strings(captions, name) for name in ("prompt", "answer", "target")], None
    for number, (axes, prompt, old, new) in enumerate(zip(rows, *texts, strict=True)):
        caption_panel(axes[0], f"{question_text(prompt)}\nedit: {old} to {new}", width=22)
        show_image(axes[1], measured.images[f"{number}-request"], "picture" if not number else "")
        shown = _maps(axes[2:], measured, number, style, scale)
    add_colorbar(
        drawing, shown, [ax for axes in rows for ax in axes[2:]], "mapper, after the sigmoid"
    )
    _means(drawing.add_subplot(grid[:, -1]), measured, style)
    add_heading(drawing, heading(measured))
    return drawing


def heading(measured: Measured) -> str:
    """Return the title of the figures about the influence mapper."""
    about = measured.about
    return (
        f"Influence mapper of VisEdit after layer {about['layer']} of {about['model']}, "
        f"n = {about['n']} edits"
    )


def verdict(measured: Measured) -> Verdict:
    """Check that the mapper is highest on the object asked about, and low on unrelated images."""
    own, moved = (values(measured, name, "auc") for name in ("request", "other picture"))
    among = values(measured, "request", "auc_objects")
    lower = unrelated_drop(measured)
    known = estimate(own).n > 0
    found = [estimate(own).above(0.5), estimate(moved).above(0.5), lower.above(0)]
    statistic = (
        f"the chance that a visual token on the object asked about has a higher score than one "
        f"elsewhere in the picture is {estimate(own)}, in another picture of it {estimate(moved)} "
        f"(chance 0.5, n = {estimate(own).n} edits about one object); than one on another object "
        f"{estimate(among)}. The mean score is {estimate(values(measured, 'request', 'mean'))} on "
        f"the edit's picture, higher than on an unrelated one by {lower.to(3)} (n = {lower.n})"
    )
    return Verdict(all_hold(*found) if known else None, statistic)


def values(measured: Measured, name: str, column: str) -> np.ndarray:
    """Return a column of "scores" for one map, by example."""
    return floats(measured.tables["scores"], column, map=name)


def unrelated_drop(measured: Measured) -> Estimate:
    """Return the mean score on the edit's image minus that on an unrelated image."""
    return estimate(
        values(measured, "request", "mean") - values(measured, "unrelated image", "mean")
    )


def alt(measured: Measured) -> str:
    """Describe the maps by the mean score on the parts of each kind of image."""
    parts = []
    for name in ("request", "other picture", HEAT):
        means = ", ".join(
            f"{words} {estimate(values(measured, name, column))}" for column, words in PARTS.items()
        )
        parts.append(f"{_label(name)}: {means}")
    unrelated = estimate(values(measured, "unrelated image", "mean"))
    prompts = "; ".join(
        question_text(prompt) for prompt in strings(measured.tables["captions"], "prompt")
    )
    return (
        f"Pictures with the influence mapper's scores over them, for the edits of: {prompts}. Mean "
        f"over all {measured.about['n']} edits: {'. '.join(parts)}. Unrelated image: {unrelated}."
    )


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 3",
    "Where the influence mapper lets an edit act",
    "The mapper picks out the part of a picture that the edit's prompt is about, also in another "
    "picture of the same thing; pictures that have nothing to do with the edit get low scores "
    "everywhere.",
    partial(measure_mapper, name=NAME, shown=SHOWN),
    draw,
    verdict,
    alt,
    published="the mapper picks out what the edit's prompt is about",
)


def _maps(
    axes: "list[Axes]", measured: Measured, number: int, style: Style, scale: Scale
) -> object:
    """Draw the mapper on three images, then the heatmap on its own scale."""
    example = strings(measured.tables["captions"], "example")[number]
    mine = select_rows(measured.tables["maps"], example=example)
    shown = None
    for ax, (name, image) in zip(axes, COLUMNS.items(), strict=False):
        cells = select_rows(mine, map=name)
        title = {"request": "mapper,\nsame picture"}.get(name, f"mapper,\n{name}")
        pixels = measured.images[f"{number}-{image}"]
        shown = show_map(ax, pixels, cells, scale, style, "" if number else title)
    heat = select_rows(mine, map=HEAT)
    pixels = measured.images[f"{number}-request"]
    title = "" if number else "training\nheatmap"
    scale = Scale.of(floats(heat, "value"))
    show_map(axes[3], pixels, heat, scale, style, title)
    axes[3].set_xlabel(f"{scale.low:.2f} to {scale.high:.2f}", fontsize=7.5)
    return shown


def _means(ax: "Axes", measured: Measured, style: Style) -> None:
    """Draw the mean score on the parts of an image, with intervals."""
    for i, name in enumerate(("request", "other picture", "unrelated image")):
        columns = [*PARTS] if name != "unrelated image" else ["mean"]
        found = [estimate(values(measured, name, column)) for column in columns]
        at = np.arange(len(found)) + 0.15 * (i - 1) if len(found) > 1 else np.array([3.0])
        draw_estimates(ax, at, found, style, i, label=_label(name))
    ax.set_yticks(range(4), [*PARTS.values(), "unrelated image"], fontsize=8.5)
    ax.set_ylim(3.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("mean score, 95 % interval", fontsize=8.5)
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1.0))


def _label(name: str) -> str:
    return {"request": "the edit's picture", HEAT: "training heatmap"}.get(name, name)
