"""VisEdit, Figure 1: contributions of each layer, and heatmaps of what attention reads."""

from typing import TYPE_CHECKING, Any

import numpy as np

from figures.contribution_bars import (
    contributions,
    depth_increase,
    describe_bars,
    draw_bars,
    half_means,
)
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.frames import by_layer
from figures.heatmap_gallery import balanced_samples, heatmap_tables, pointing_rates
from figures.heatmap_montage import (
    MOSTLY,
    describe_hottest,
    draw_montage,
    hit_rate,
    per_example,
)
from figures.measure import load_inputs, provenance, same_depth
from figures.style import Style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

SHOWN = 4  # samples
HIGH = 0.5  # of the largest mean contribution: the threshold of a high-contribution layer


def measure(setting: Setting) -> Measured:
    """Measure the tables "contributions", "heat", "samples" and, if possible, "pointing"."""
    vlm, data = load_inputs(setting)
    table = contributions(vlm, data, norms=("none", "final"))
    shallow = same_depth(3, 32, vlm.num_layers)
    best = np.argsort(-by_layer(table, "attn").mean(0))[:2]
    layers = sorted({shallow, *best.tolist()})
    tables, images = heatmap_tables(vlm, balanced_samples(data, SHOWN, 1), layers, setting.seed)
    pointing = pointing_rates(vlm, data, setting.seed)
    known = {} if pointing is None else {"pointing": pointing}
    about = provenance("visedit_figure_1", setting, len(set(table["example"])))
    return Measured({"contributions": table, **tables, **known}, images, about)


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw bars on the left and heatmaps of four samples on the right."""
    from attrib.plots.drawing import new_figure

    figure = new_figure(13.0, 4.2)
    axes: Any = figure.subplots(1, 2, width_ratios=(1, 1.75))
    title = f"What each layer contributes (n = {measured.about['n']})"
    draw_bars(axes[0], measured.tables["contributions"], style, title, seed=measured.about["seed"])
    draw_montage(axes[1], measured, style, text_width=2.9)
    axes[1].set_title(f"What attention reads ({style.hot}: much); dashed: the object asked about")
    return figure


def high_layers(table: "pd.DataFrame") -> list[int]:
    """Return the layers whose attention contributes at least half of the maximum."""
    means = by_layer(table, "attn").mean(0)
    return np.flatnonzero(means >= HIGH * means.max()).tolist()


def verdict(measured: Measured) -> Verdict:
    """Check that deep layers contribute more and that attention reads the object asked about."""
    table, seed = measured.tables["contributions"], measured.about["seed"]
    more, final = (estimate(depth_increase(table, suffix), seed=seed) for suffix in ("", "_final"))
    shallow, deep = half_means(table)
    first = (
        f"a module of the first half of the layers contributes {shallow:.3f} on average, one of "
        f"the second {deep:.3f} (difference {more}, 95 % interval, n = {more.n}; with the final "
        f"norm first, as in the published code, {final})"
    )
    if "pointing" not in measured.tables:
        return Verdict(False if more.above(0) is False else None, (
            f"{first}; these data do not tell where the object asked about is."
        ))  # fmt: skip
    layers = high_layers(table)
    rate, little = (hit_rate(measured, noise, layers) for noise in ("paper", "little"))
    mostly = rate.above(MOSTLY)
    chance = per_example(measured, "chance", layers).mean()
    return Verdict(all_hold(more.above(0), mostly), (
        f"{first}. In the layers with much attention contribution ({', '.join(map(str, layers))}) "
        f"the hottest visual token is on the object asked about in "
        f"{rate}, n = {rate.n} (chance {chance:.2f}; with noise of 0.1 std "
        f"{little}, n = {little.n}): the first half of the claim "
        f"{'holds' if more.above(0) else 'is not shown'}, and that it is mostly the object "
        f"{'holds' if mostly else 'does not' if mostly is False else 'is undecided'}."
    ))  # fmt: skip


def alt(measured: Measured) -> str:
    """Describe the bars and the hottest cells."""
    return (
        f"Bars of the mean contribution of each layer's modules, "
        f"{describe_bars(measured.tables['contributions'])}. Heatmaps of {SHOWN} samples; with "
        f"noise of 3 std they are hottest at: {describe_hottest(measured, 'paper')}; with noise of "
        f"0.1 std at: {describe_hottest(measured, 'little')}."
    )


FIGURE = Figure(
    name="visedit_figure_1",
    source="VisEdit, Figure 1",
    title="What each layer contributes to the answer, and what its attention reads in the image",
    claim=(
        "Attention and MLP of deep layers contribute far more to the predicted token than those of "
        "shallow layers; and what attention writes in the layers that contribute much is decided "
        "mostly by the visual tokens of the objects that the prompt is about."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
    published="deep layers contribute far more, and read the object that the prompt is about",
)
