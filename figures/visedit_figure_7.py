"""VisEdit, Figure 7: heatmaps of what attention reads, from shallow to deep layers."""

from typing import TYPE_CHECKING

from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.heatmap_gallery import balanced_samples, heatmap_tables, pointing_rates
from figures.heatmap_montage import (
    MOSTLY,
    describe_hottest,
    draw_montage,
    hit_rate,
    layers_in,
    per_example,
)
from figures.measure import load_inputs, provenance, relative_depth, same_depth
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SHOWN, PER_KIND = 10, 3
PAPER_LAYERS = 32
DEPTHS = (0, 8, 14, 19, 25, 30)  # shown, of the paper's 32 layers
# The paper groups layers 0-10, 10-18 and 19-30 of 32; here the same by relative depth.
BANDS = {"shallow": (0.0, 0.32), "middle": (0.32, 0.6), "deep": (0.6, 1.01)}


def measure(setting: Setting) -> Measured:
    """Measure the tables "heat", "samples" and, if there is ground truth, "pointing"."""
    vlm, data = load_inputs(setting)
    layers = sorted({same_depth(depth, PAPER_LAYERS, vlm.num_layers) for depth in DEPTHS})
    tables, images = heatmap_tables(
        vlm, balanced_samples(data, SHOWN, PER_KIND), layers, setting.seed
    )
    pointing = pointing_rates(vlm, data, setting.seed)
    known = {} if pointing is None else {"pointing": pointing}
    about = provenance("visedit_figure_7", setting, len(data), layers=vlm.num_layers)
    return Measured({**tables, **known}, images, about)


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a row per sample; dashed frames mark the object asked about."""
    from attrib.plots.drawing import new_figure

    rows = len(measured.tables["samples"])
    columns = 1 + 2 * len(layers_in(measured.tables["heat"]))
    figure = new_figure(0.66 * (columns + 4.2), 0.72 * rows + 0.9)
    ax = figure.add_subplot()
    draw_montage(ax, measured, style, text_width=3.6, size=7.0)
    marks = "dashed: the object asked about; quoted: the answer"
    ax.set_title(f"What attention reads ({style.hot}: much); {marks}")
    return figure


def bands(num_layers: int) -> dict[str, list[int]]:
    """Return the layers of each band of depth."""
    return {
        name: [n for n in range(num_layers) if low <= relative_depth(n, num_layers) < high]
        for name, (low, high) in BANDS.items()
    }


def verdict(measured: Measured) -> Verdict:
    """Check that heatmaps are at chance in shallow layers and on the object in deep ones."""
    if "pointing" not in measured.tables:
        return Verdict(None, "these data do not tell where the object asked about is.")
    layers, seed = bands(measured.about["layers"]), measured.about["seed"]
    shallow, deep = (per_example(measured, "paper", layers[name]) for name in ("shallow", "deep"))
    chance = per_example(measured, "chance", layers["deep"])
    more, from_chance = estimate(deep - shallow, seed=seed), estimate(shallow - chance, seed=seed)
    mostly = hit_rate(measured, "paper", layers["deep"]).above(MOSTLY)
    rates = {noise: _rates(measured, noise, layers) for noise in ("paper", "little")}
    return Verdict(all_hold(more.above(0), from_chance.above(0) is not True, mostly), (
        f"the hottest visual token is on the object asked about in {rates['paper']}, where chance "
        f"is {chance.mean():.2f}; deep minus shallow {more}, 95 % intervals. Heatmaps "
        f"{'' if more.above(0) else 'are not shown to '}improve with depth, but deep ones "
        f"{'do' if mostly else 'do not'} point at the object mostly. With noise of 0.1 std instead "
        f"of 3: {rates['little']}."
    ))  # fmt: skip


def _rates(measured: Measured, noise: str, layers: dict[str, list[int]]) -> str:
    rates = {name: hit_rate(measured, noise, some) for name, some in layers.items()}
    return ", ".join(
        f"{rate}, n = {rate.n} in {name} layers ({_range(layers[name])})"
        for name, rate in rates.items()
    )


def _range(layers: list[int]) -> str:
    return f"{layers[0]}-{layers[-1]}" if layers else "none"


def alt(measured: Measured) -> str:
    """Describe the hottest cells."""
    return (
        f"Heatmaps of {len(measured.tables['samples'])} samples. With noise of 3 std they are "
        f"hottest at: {describe_hottest(measured, 'paper')}."
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
    published="no clear meaning in shallow layers; in deep ones what the prompt asks for",
)
