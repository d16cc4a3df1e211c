"""What each layer contributes to the answer, and what its attention reads in the image."""

from typing import TYPE_CHECKING, Any

import numpy as np

from figures.contribution_bars import (
    bars_in_words,
    contributions,
    draw_bars,
    halves,
    rise,
)
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.heat_gallery import gallery, of_each_kind, pointing
from figures.heat_montage import (
    draw_montage,
    hit_rate,
    hits,
    hottest_in_words,
    per_example,
)
from figures.measuring import about, at_depth, by_layer, opened
from figures.style import Style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

SHOWN = 4  # samples
HIGH = 0.5  # of the largest mean contribution: what makes a layer a high-contribution one
MOSTLY = 0.5  # of the heatmaps must be hottest on the object


def measure(setting: Setting) -> Measured:
    """The tables "contributions", "heat", "samples" and, where the truth is known, "pointing"."""
    vlm, data = opened(setting)
    table = contributions(vlm, data, norms=("none", "final"))
    shallow = at_depth(3, 32, vlm.num_layers)
    best = np.argsort(-by_layer(table, "attn").mean(0))[:2]
    layers = sorted({shallow, *best.tolist()})
    tables, images = gallery(vlm, of_each_kind(data, SHOWN, 1), layers, setting.seed)
    known = pointing(vlm, data, setting.seed)
    found = {} if known is None else {"pointing": known}
    made = about("visedit_figure_1", setting, len(set(table["example"])))
    return Measured({"contributions": table, **tables, **found}, images, made)


def draw(measured: Measured, style: Style) -> "Drawing":
    """Bars on the left, heatmaps of four samples on the right."""
    from attrib.plots.drawing import new_figure

    figure = new_figure(13.0, 4.2)
    axes: Any = figure.subplots(1, 2, width_ratios=(1, 1.75))
    title = f"What each layer contributes (n = {measured.about['n']})"
    draw_bars(axes[0], measured.tables["contributions"], style, title, seed=measured.about["seed"])
    draw_montage(axes[1], measured, style, words=2.9)
    axes[1].set_title(f"What attention reads ({style.hot}: much); dashed: the object asked about")
    return figure


def high_layers(table: "pd.DataFrame") -> list[int]:
    """The layers whose attention contributes at least half of what the largest does."""
    means = by_layer(table, "attn").mean(0)
    return np.flatnonzero(means >= HIGH * means.max()).tolist()


def verdict(measured: Measured) -> Verdict:
    """Deeper layers contribute more, and their attention mostly reads the object asked about."""
    table, seed = measured.tables["contributions"], measured.about["seed"]
    more, final = (estimate(rise(table, suffix), seed=seed) for suffix in ("", "_final"))
    shallow, deep = halves(table)
    first = (
        f"a module of the first half of the layers contributes {shallow:.3f} on average, one of "
        f"the second {deep:.3f} (difference {more}, 95 % interval, n = {more.n}; with the final "
        f"norm first, as in the published code, {final})"
    )
    if "pointing" not in measured.tables:
        return Verdict(False if more.above(0) is False else None, (
            f"{first}; where the object asked about is, these data do not say."
        ))  # fmt: skip
    layers = high_layers(table)
    _, low, high, _ = hit_rate(measured, "paper", layers)
    mostly = True if low > MOSTLY else (False if high < MOSTLY else None)
    chance = per_example(measured, "chance", layers).mean()
    return Verdict(all_hold(more.above(0), mostly), (
        f"{first}. In the layers with much attention contribution ({', '.join(map(str, layers))}) "
        f"the hottest visual token is on the object asked about in "
        f"{hits(measured, 'paper', layers)} (chance {chance:.2f}; with noise of 0.1 std "
        f"{hits(measured, 'little', layers)}): the first half of the claim "
        f"{'holds' if more.above(0) else 'is not shown'}, and that it is mostly the object "
        f"{'holds' if mostly else 'does not' if mostly is False else 'cannot be told'}."
    ))  # fmt: skip


def alt(measured: Measured) -> str:
    """The bars and where the heatmaps are hottest."""
    return (
        f"Bars of the mean contribution of each layer's modules, "
        f"{bars_in_words(measured.tables['contributions'])}. Heatmaps of {SHOWN} samples; with "
        f"noise of 3 std they are hottest at: {hottest_in_words(measured, 'paper')}; with noise of "
        f"0.1 std at: {hottest_in_words(measured, 'little')}."
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
)
