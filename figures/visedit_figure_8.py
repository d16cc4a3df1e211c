"""VisEdit, Figure 8: more maps of the influence mapper, for two questions per image."""

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
    strip_axes,
)
from figures.influence_maps import measure_mapper
from figures.scene_objects import question_text
from figures.style import Style
from figures.visedit_figure_3 import heading, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_8"
SHOWN = {"color": 1, "shape": 1, "place": 2, "relation": 1, "object": 1}
ASKED, OTHER = "request", "other question"
NO_CORRELATION = 0.1  # an interval around 0 that ends below it means no correlation
ACROSS, PANELS = 2, 4  # samples side by side; panels of a sample: text, image, two maps


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw each image with the maps of its question and of another one; then statistics."""
    from attrib.plots.drawing import new_figure

    captions = measured.tables["captions"]
    down = -(-len(captions) // ACROSS)
    drawing = new_figure(12.2, 1.55 * down + 2.9)
    grid = drawing.add_gridspec(down + 1, ACROSS * PANELS, height_ratios=[1] * down + [1.5],
                                width_ratios=[1.5, 1, 1, 1] * ACROSS)  # fmt: skip
    highest = floats(measured.tables["maps"], "value", map=(ASKED, OTHER)).max()
    scale, axes, shown = Scale(0.0, float(highest)), [], None
    for number in range(len(captions)):
        row, col = number % down, number // down * PANELS
        panels = [drawing.add_subplot(grid[row, col + i]) for i in range(PANELS)]
        shown = _sample(panels, measured, number, scale, style, titles=row == 0)
        axes += panels[2:]
    add_colorbar(drawing, shown, axes, "mapper, after the sigmoid")
    _by_kind(drawing.add_subplot(grid[-1, 1:PANELS]), measured, style)
    _agreement(drawing.add_subplot(grid[-1, PANELS + 1 :]), measured, style)
    add_heading(drawing, heading(measured))
    return drawing


def verdict(measured: Measured) -> Verdict:
    """Check that the map follows the edit's prompt and resembles its training heatmap."""
    steered = estimate(question_gain(measured))
    agreement = estimate(values(measured, ASKED, "agreement"))
    statistic = (
        f"a token on the object asked about has a higher score than one on another object with a "
        f"chance of {estimate(values(measured, ASKED, 'auc_objects'))}; if the edit is of "
        f"another question about the same picture, that is lower by {steered} (n = {steered.n} "
        f"edits). The rank correlation with the mapper's training heatmap is "
        f"{agreement} (n = {agreement.n})"
    )
    found = all_hold(steered.above(0), agreement.above(0))
    if found is None and steered.above(0) and agreement.high < NO_CORRELATION:
        found = False
    return Verdict(found if steered.n else None, statistic)


def question_gain(measured: Measured) -> np.ndarray:
    """Return per example the AUC of its own question minus that of another question."""
    table = measured.tables["scores"]
    wide = table.pivot(index="example", columns="map", values="auc_objects")
    wide = wide.reindex(columns=[ASKED, OTHER])
    return (wide[ASKED] - wide[OTHER]).to_numpy(float)


def alt(measured: Measured) -> str:
    """Describe the statistics by kind of question, and name the samples shown."""
    parts = [f"{kind}: own question {own}, another {other}" for kind, own, other in kinds(measured)]
    prompts = "; ".join(
        question_text(prompt) for prompt in strings(measured.tables["captions"], "prompt")
    )
    return (
        "Pictures with the influence mapper's scores over them, for the edit's question "
        f"and for another question about the same picture; samples: {prompts}. Chance that a token "
        f"on the object asked about has a higher score than one on another object, by kind of "
        f"question: {'; '.join(parts)}. Rank correlation with the training heatmap: "
        f"{estimate(values(measured, ASKED, 'agreement'))}."
    )


def kinds(measured: Measured) -> list[tuple[str, Estimate, Estimate]]:
    """Return per kind of question about one object the AUC of its own and of another question."""
    table = measured.tables["scores"]
    found = []
    for kind in sorted({str(kind) for kind in table["kind"]}):
        both = [
            estimate(floats(table, "auc_objects", kind=kind, map=name)) for name in (ASKED, OTHER)
        ]
        if both[0].n:
            found.append((kind or "all", both[0], both[1]))
    return found


FIGURE = Figure(
    NAME,
    "VisEdit, Figure 8",
    "More maps of the influence mapper, by question",
    "In more examples the mapper has learned from the model's attention where the last token of "
    "the edit's prompt looks, and so picks the visual tokens that the prompt is about.",
    partial(measure_mapper, name=NAME, shown=SHOWN, images=("request",)),
    draw,
    verdict,
    alt,
    published="the mapper picks the visual tokens that the prompt is about",
)


def _sample(
    axes: "list[Axes]", measured: Measured, number: int, scale: Scale, style: Style, *, titles: bool
) -> object:
    captions, pixels = measured.tables["captions"], measured.images[f"{number}-request"]
    example, prompt, other = (
        strings(captions, name)[number] for name in ("example", "prompt", "other_question")
    )
    own, cells = (
        select_rows(measured.tables["maps"], example=example, map=m) for m in (ASKED, OTHER)
    )
    caption_panel(
        axes[0], f"Q: {_short(prompt)}\nother: {_short(other) or 'none'}", size=7.5, width=27
    )
    show_image(axes[1], pixels, "picture" if titles else "")
    shown = show_map(axes[2], pixels, own, scale, style, "question" if titles else "")
    if cells.empty:
        strip_axes(axes[3])
        return shown
    return show_map(axes[3], pixels, cells, scale, style, "other question" if titles else "")


def _short(prompt: str) -> str:
    """Return the question without the sentences before it that define names."""
    words = question_text(prompt)
    return words if len(words) < 60 else f"{words[:28]} ... {words.rsplit('. ', 1)[-1]}"


def _by_kind(ax: "Axes", measured: Measured, style: Style) -> None:
    found = kinds(measured)
    for i, name in enumerate(("own question", "another question")):
        some = [(own, other)[i] for _, own, other in found]
        at = np.arange(len(found)) + 0.16 * (i - 0.5)
        draw_estimates(ax, at, some, style, i, label=name, along="y")
    ax.axhline(0.5, color=style.colors["muted"], linewidth=0.8)
    ax.set_xticks(range(len(found)), [f"{kind}\nn = {own.n}" for kind, own, _ in found], fontsize=8)
    ax.set_ylim(0, 1)
    ax.set_ylabel("AUC, asked object\nagainst other objects", fontsize=8.5)
    ax.set_title("AUC by kind of question", fontsize=9)
    if found:
        ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _agreement(ax: "Axes", measured: Measured, style: Style) -> None:
    found = values(measured, ASKED, "agreement")
    found = found[np.isfinite(found)]
    ax.hist(found, bins=np.linspace(-1, 1, 41).tolist(), color=style.colors["visual"])
    ax.axvline(float(np.mean(found)), color=style.colors["ink"], linestyle="--", linewidth=1.2)
    ax.set_xlabel(
        f"rank correlation with the training heatmap (mean {np.mean(found):.2f})", fontsize=8.5
    )
    ax.set_ylabel("edits", fontsize=8.5)
    ax.set_title("Agreement with the training heatmap", fontsize=9)
