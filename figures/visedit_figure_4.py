"""VisEdit, Figure 4: heatmaps of one edit's inputs before and after the edit, by layer."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from figures.before_after_statistics import (
    COMPARED,
    IMAGES,
    LABELS,
    SHOWN,
    WHEN,
    answers_followed,
    by_input,
    column,
    draw_comparisons,
    moved_share,
    stays,
)
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Verdict
from figures.frames import floats, layers_of, select_rows, strings
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

NAME = "visedit_figure_4"
LAYERS = 3


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a row per input before and after one edit, and the statistics of all edits."""
    from attrib.plots.drawing import new_figure

    drawing = new_figure(11.6, 8.6)
    left, right = drawing.add_gridspec(1, 2, width_ratios=(2.1, 1))
    widths = [1.9, *[1] * (len(layers_of(measured.tables["maps"])) + 1)]
    grid = np.asarray(left.subgridspec(len(SHOWN), len(widths), width_ratios=widths).subplots())
    shown = [
        _draw_row(list(axes), measured, name, edited, style, titles=row == 0)
        for row, (axes, (name, edited)) in enumerate(zip(grid, SHOWN, strict=True))
    ]
    add_colorbar(drawing, shown[-1], list(grid[:, 2:].ravel()), HEAT_LABEL)
    above, below = np.asarray(right.subgridspec(2, 1).subplots()).tolist()
    label = "rank correlation of the heat,\nbefore and after; mean over layers"
    draw_comparisons(above, measured, "agreement", label, style)
    _draw_layers(below, measured, style)
    about = measured.about
    add_heading(
        drawing,
        f"Heat before and after a VisEdit edit at layer {about['layer']} of {about['model']}; "
        f"right: all n = {about['n']} edits",
    )
    return drawing


def verdict(measured: Measured) -> Verdict:
    """Check that answers change while heat stays closer to itself than to another question's.

    On unrelated images it is to change no more than with another noise seed.
    """
    moved, answers = moved_share(measured, "agreement"), answers_followed(measured)
    own, other, noise = (
        by_input(measured, name, "agreement") for name in (REQUEST, CONTROL, REPEAT)
    )
    unrelated, repeat = (column(measured, name, "agreement") for name in (UNRELATED, REPEAT))
    beyond_noise = estimate((unrelated - repeat).to_numpy())
    statistic = (
        f"answers followed the edit in {100 * answers.mean:.0f} % "
        f"[{100 * answers.low:.0f}, {100 * answers.high:.0f}] of requests, rephrases and other "
        f"pictures (n = {answers.n} edits). The rank correlation of the heat before and after is "
        f"{own}; with another noise seed alone it would be {noise}, with another question about "
        f"the same picture {other}: the edit moves the heat {moved} of the way between the two. "
        f"On unrelated images the correlation is {by_input(measured, UNRELATED, 'agreement')} "
        f"(minus that with another noise seed: {beyond_noise})"
    )
    return Verdict(all_hold(answers.above(0.5), stays(moved), beyond_noise.above(0)), statistic)


def alt(measured: Measured) -> str:
    """Describe the answers of the example and the means over all edits."""
    captions = measured.tables["captions"]
    first = captions[captions["number"] == 0].set_index("input")
    answers = "; ".join(
        f"{name}: {question_text(str(row['prompt']))} {row['before']} before, {row['after']} after"
        for name, row in first.iterrows()
    )
    means = ", ".join(
        f"{LABELS[name]} {by_input(measured, name, 'agreement')}" for name in COMPARED
    )
    return (
        f"Heatmaps of one edit's inputs in layers {layers_of(measured.tables['maps'])}, before and "
        f"after. {answers}. Mean rank correlation of the heat before and after over "
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
    published="the answers change, the part of the picture that is read does not",
)


def _draw_row(
    axes: "list[Axes]", measured: Measured, name: str, edited: int, style: Style, *, titles: bool
) -> object:
    captions, maps = measured.tables["captions"], measured.tables["maps"]
    prompt, answer = (strings(captions, of, number=0, input=name)[0]
                      for of in ("prompt", WHEN[edited]))  # fmt: skip
    text = f"{WHEN[edited]}, {name}\n{question_text(prompt)}\n{answer}"
    caption_panel(axes[0], text, size=7.5, width=32)
    pixels = measured.images[f"0-{IMAGES[name]}"]
    show_image(axes[1], pixels, "picture" if titles else "")
    shown = None
    for ax, layer in zip(axes[2:], layers_of(maps), strict=True):
        cells = select_rows(maps, number=0, input=name, edited=edited, layer=layer)
        shown = show_heatmap(ax, pixels, cells, style, f"layer {layer}" if titles else "")
    return shown


def _draw_layers(ax: "Axes", measured: Measured, style: Style) -> None:
    """Draw the rank correlation of the heat before and after, by layer."""
    table = measured.tables["layers"]
    for i, name in enumerate((REQUEST, UNRELATED, CONTROL)):
        x, y, low, high = (floats(table, c, input=name) for c in ("layer", "mean", "low", "high"))
        ax.fill_between(x, low, high, color=style.cycle[i], alpha=0.2, linewidth=0)
        ax.plot(x, y, style.lines[i], marker=style.markers[i], color=style.cycle[i],
                markersize=4, label=LABELS[name])  # fmt: skip
    ax.set_xlabel("layer", fontsize=8.5)
    ax.set_ylabel("rank correlation", fontsize=8.5)
    if len(layers := measured.about["layers"]) < 12:
        ax.set_xticks(layers)
    ax.set_ylim(min(0.0, float(np.nanmin(floats(table, "low")))), 1)
    ax.legend(fontsize=8)
