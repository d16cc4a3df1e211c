"""VisEdit, Figure 8: more maps of the influence mapper, steered by the edit's prompt."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from figures.estimates import Estimate, all_hold, estimate
from figures.figure import Figure, Measured, Verdict
from figures.map_panels import Scale, bar, bare, beside, question, show_image, show_map
from figures.mapper_maps import measure_mapper
from figures.rows import numbers, where, words
from figures.settling import settled
from figures.style import Style
from figures.visedit_figure_3 import values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

NAME = "visedit_figure_8"
SHOWN = {"color": 1, "shape": 1, "place": 2, "relation": 1, "object": 1}
ASKED, OTHER = "request", "other question"
NO_CORRELATION = 0.1  # an interval below it, and around 0, says that there is none to speak of
ACROSS, PANELS = 2, 4  # samples side by side, and panels of one: words, picture, two maps


def draw(measured: Measured, style: Style) -> "Drawing":
    """Each sample's picture, the mapper steered by its question and by another; then by kind."""
    from attrib.plots.drawing import new_figure

    captions = measured.tables["captions"]
    down = -(-len(captions) // ACROSS)
    drawing = new_figure(12.2, 1.55 * down + 2.9)
    grid = drawing.add_gridspec(down + 1, ACROSS * PANELS, height_ratios=[1] * down + [1.5],
                                width_ratios=[1.5, 1, 1, 1] * ACROSS)  # fmt: skip
    highest = numbers(measured.tables["maps"], "value", map=(ASKED, OTHER)).max()
    scale, axes, shown = Scale(0.0, float(highest)), [], None
    for number in range(len(captions)):
        row, col = number % down, number // down * PANELS
        panels = [drawing.add_subplot(grid[row, col + i]) for i in range(PANELS)]
        shown = _sample(panels, measured, number, scale, style, titles=row == 0)
        axes += panels[2:]
    bar(drawing, shown, axes, "mapper, after the sigmoid")
    _by_kind(drawing.add_subplot(grid[-1, 1:PANELS]), measured, style)
    _agreement(drawing.add_subplot(grid[-1, PANELS + 1 :]), measured, style)
    about = measured.about
    drawing.suptitle(
        f"Influence mapper of VisEdit after layer {about['layer']} of {about['model']}, "
        f"n = {about['n']} edits", fontsize=10.5, x=0.01, ha="left",
    )  # fmt: skip
    return settled(drawing)


def verdict(measured: Measured) -> Verdict:
    """Whether the map follows the edit's prompt, and looks like the heatmap it was taught with."""
    steered = estimate(led(measured))
    agreement = estimate(values(measured, ASKED, "agreement"))
    statistic = (
        f"a token on the object asked about has a higher score than one on another object with a "
        f"chance of {estimate(values(measured, ASKED, 'auc_objects'))}; where the edit is of "
        f"another question about the same picture that is lower by {steered} (n = {steered.n} "
        f"edits). The rank correlation with the heatmap that the mapper was taught with is "
        f"{agreement} (n = {agreement.n})"
    )
    found = all_hold(steered.above(0), agreement.above(0))
    if found is None and steered.above(0) and agreement.high < NO_CORRELATION:
        found = False
    return Verdict(found if steered.n else None, statistic)


def led(measured: Measured) -> np.ndarray:
    """Per example by how much its own question finds the object better than another one does."""
    table = measured.tables["scores"]
    wide = table.pivot(index="example", columns="map", values="auc_objects")
    wide = wide.reindex(columns=[ASKED, OTHER])
    return (wide[ASKED] - wide[OTHER]).to_numpy(float)


def alt(measured: Measured) -> str:
    """The statistics by kind of question in words, and which samples are shown."""
    parts = [f"{kind}: own question {own}, another {other}" for kind, own, other in kinds(measured)]
    prompts = "; ".join(question(prompt) for prompt in words(measured.tables["captions"], "prompt"))
    return (
        "Pictures with the influence mapper's scores over them, steered by the edit's question "
        f"and by another question about the same picture, for: {prompts}. Chance that a token on "
        f"the object asked about has a higher score than one on another object, by kind of "
        f"question: {'; '.join(parts)}. Rank correlation with the taught heatmap: "
        f"{estimate(values(measured, ASKED, 'agreement'))}."
    )


def kinds(measured: Measured) -> list[tuple[str, Estimate, Estimate]]:
    """Per kind of question that is about one object, how well its own and another one find it."""
    table = measured.tables["scores"]
    found = []
    for kind in sorted({str(kind) for kind in table["kind"]}):
        both = [
            estimate(numbers(table, "auc_objects", kind=kind, map=name)) for name in (ASKED, OTHER)
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
)


def _sample(
    axes: "list[Axes]", measured: Measured, number: int, scale: Scale, style: Style, *, titles: bool
) -> object:
    captions, pixels = measured.tables["captions"], measured.images[f"{number}-request"]
    example, prompt, other = (
        words(captions, name)[number] for name in ("example", "prompt", "other_question")
    )
    own, cells = (where(measured.tables["maps"], example=example, map=m) for m in (ASKED, OTHER))
    beside(axes[0], f"Q: {_short(prompt)}\nother: {_short(other) or 'none'}", size=7.5, width=27)
    show_image(axes[1], pixels, "picture" if titles else "")
    shown = show_map(axes[2], pixels, own, scale, style, "question" if titles else "")
    if cells.empty:
        bare(axes[3])
        return shown
    return show_map(axes[3], pixels, cells, scale, style, "other question" if titles else "")


def _short(prompt: str) -> str:
    """The question, without the sentences in front that give names to things."""
    words = question(prompt)
    return words if len(words) < 60 else f"{words[:28]} ... {words.rsplit('. ', 1)[-1]}"


def _by_kind(ax: "Axes", measured: Measured, style: Style) -> None:
    found = kinds(measured)
    for i, name in enumerate(("own question", "another question")):
        some = [(own, other)[i] for _, own, other in found]
        middle = np.array([one.mean for one in some])
        ends = np.array([[one.mean - one.low, one.high - one.mean] for one in some]).T
        at = np.arange(len(found)) + 0.16 * (i - 0.5)
        ax.errorbar(at, middle, yerr=ends.clip(min=0), fmt=style.markers[i], color=style.cycle[i],
                    markersize=5, label=name)  # fmt: skip
    ax.axhline(0.5, color=style.colors["muted"], linewidth=0.8)
    ax.set_xticks(range(len(found)), [f"{kind}\nn = {own.n}" for kind, own, _ in found], fontsize=8)
    ax.set_ylim(0, 1)
    ax.set_ylabel("AUC, asked object\nagainst other objects", fontsize=8.5)
    ax.set_title("Does it find the object? By kind of question", fontsize=9)
    ax.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _agreement(ax: "Axes", measured: Measured, style: Style) -> None:
    found = values(measured, ASKED, "agreement")
    found = found[np.isfinite(found)]
    ax.hist(found, bins=np.linspace(-1, 1, 41).tolist(), color=style.colors["visual"])
    ax.axvline(float(np.mean(found)), color=style.colors["ink"], linestyle="--", linewidth=1.2)
    ax.set_xlabel(
        f"rank correlation with the taught heatmap (mean {np.mean(found):.2f})", fontsize=8.5
    )
    ax.set_ylabel("edits", fontsize=8.5)
    ax.set_title("Does it look like what it was taught?", fontsize=9)
