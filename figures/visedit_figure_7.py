"""More heatmaps: what attention reads in the image from shallow to deep layers."""

from typing import TYPE_CHECKING

from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.heat_gallery import gallery, of_each_kind, pointing
from figures.heat_montage import (
    draw_montage,
    heat_layers,
    hit_rate,
    hits,
    hottest_in_words,
    per_example,
)
from figures.measuring import about, at_depth, opened, share_of_depth
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SHOWN, PER_KIND = 10, 3
PAPER_LAYERS = 32
DEPTHS = (0, 8, 14, 19, 25, 30)  # shown, of the paper's 32 layers
# The paper reads layers 0-10, 10-18 and 19-30 of 32 apart; here by the share of the depth.
BANDS = {"shallow": (0.0, 0.32), "middle": (0.32, 0.6), "deep": (0.6, 1.01)}
MOSTLY = 0.5  # of the heatmaps must be hottest on the object


def measure(setting: Setting) -> Measured:
    """The tables "heat", "samples" and, where the truth is known, "pointing"."""
    vlm, data = opened(setting)
    layers = sorted({at_depth(depth, PAPER_LAYERS, vlm.num_layers) for depth in DEPTHS})
    tables, images = gallery(vlm, of_each_kind(data, SHOWN, PER_KIND), layers, setting.seed)
    known = pointing(vlm, data, setting.seed)
    found = {} if known is None else {"pointing": known}
    made = about("visedit_figure_7", setting, len(data), layers=vlm.num_layers)
    return Measured({**tables, **found}, images, made)


def draw(measured: Measured, style: Style) -> "Drawing":
    """A row per sample; dashed frames mark the object that is asked about."""
    from attrib.plots.drawing import new_figure

    rows = len(measured.tables["samples"])
    columns = 1 + 2 * len(heat_layers(measured.tables["heat"]))
    figure = new_figure(0.66 * (columns + 4.2), 0.72 * rows + 0.9)
    ax = figure.add_subplot()
    draw_montage(ax, measured, style, words=3.6, size=7.0)
    marks = "dashed: the object asked about; quoted: the answer"
    ax.set_title(f"What attention reads ({style.hot}: much); {marks}")
    return figure


def bands(num_layers: int) -> dict[str, list[int]]:
    """The layers of each band of depth."""
    return {
        name: [n for n in range(num_layers) if low <= share_of_depth(n, num_layers) < high]
        for name, (low, high) in BANDS.items()
    }


def verdict(measured: Measured) -> Verdict:
    """Heatmaps point at chance in shallow layers, mostly at the object in deep ones."""
    if "pointing" not in measured.tables:
        return Verdict(None, "where the object asked about is, these data do not say.")
    layers, seed = bands(measured.about["layers"]), measured.about["seed"]
    shallow, deep = (per_example(measured, "paper", layers[name]) for name in ("shallow", "deep"))
    chance = per_example(measured, "chance", layers["deep"])
    more, from_chance = estimate(deep - shallow, seed=seed), estimate(shallow - chance, seed=seed)
    _, low, high, _ = hit_rate(measured, "paper", layers["deep"])
    mostly = True if low > MOSTLY else (False if high < MOSTLY else None)
    said = {
        noise: ", ".join(f"{hits(measured, noise, some)} in {name} layers ({_range(some)})"
                         for name, some in layers.items())
        for noise in ("paper", "little")
    }  # fmt: skip
    return Verdict(all_hold(more.above(0), from_chance.above(0) is not True, mostly), (
        f"the hottest visual token is on the object asked about in {said['paper']}, where chance "
        f"is {chance.mean():.2f}; deep less shallow {more}, 95 % intervals. Maps get better with "
        f"depth{'' if more.above(0) else ' is not shown'}, but deep ones "
        f"{'do' if mostly else 'do not'} point at the object mostly. With noise of 0.1 std instead "
        f"of 3: {said['little']}."
    ))  # fmt: skip


def _range(layers: list[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers else "none"


def alt(measured: Measured) -> str:
    """Where the heatmaps are hottest."""
    return (
        f"Heatmaps of {len(measured.tables['samples'])} samples. With noise of 3 std they are "
        f"hottest at: {hottest_in_words(measured, 'paper')}."
    )


FIGURE = Figure(
    name="visedit_figure_7",
    source="VisEdit, Figure 7",
    title="What attention reads in the image, from shallow to deep layers",
    claim=(
        "In shallow layers the visual tokens that attention depends on have no clear meaning; in "
        "middle layers some maps follow the prompt, with much noise; in deep layers they make "
        "sense to people and show what the prompt asks for."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
)
