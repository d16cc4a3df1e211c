"""DualEdit, Figure 1: attention of the last prompt token, by layer and in one sample."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL import Image

from figures.estimates import mean_interval, peak
from figures.figure import Figure, Measured, Setting, Verdict
from figures.frames import by_layer, floats, integers, layers_of, pivot_wide, select_rows
from figures.measure import collect_tables, load_inputs, provenance, same_depth
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from attrib.data import EditSample
    from attrib.model.vlm import VLM

DEPTHS, PAPER_LAYERS = (10, 18, 25), 32  # layers of the paper's strips, in LLaVA-1.5-7B
SURE = 0.95  # share of resamples that must agree
CURVES = (
    ("text_mean", "text, mean", "text", "^", "-"),
    ("visual_mean", "visual, mean", "visual", "o", "-"),
    ("visual_top3", "visual, 3 most attended", "visual", "s", "--"),
)


def measure(setting: Setting) -> Measured:
    """Measure the tables "profile" (attention by kind of token) and "strips" (of one sample)."""
    from attrib.analyses.attention import measure_attention

    vlm, data = load_inputs(setting)
    table = collect_tables(vlm, data, measure_attention)["attention"]
    profile = pivot_wide(table, "statistic", ("example", "layer"))
    sample = data[0]
    image = sample.request.images[0]
    about = provenance("dualedit_figure_1", setting, len(set(profile["example"])),
                 prompt=sample.request.prompt)  # fmt: skip
    return Measured(
        {"profile": profile, "strips": strips(vlm, sample)},
        {"sample": np.asarray(image)},
        about,
    )


def strips(vlm: "VLM", sample: "EditSample") -> pd.DataFrame:
    """Return the attention row of one sample at three depths.

    Columns: layer, pos, kind (bos, visual or text), token, row, col (-1 off the grid), value.
    """
    from attrib.analyses.attention import attention

    batch = vlm.encode([sample.request.image], [sample.request.prompt])
    rows = attention(vlm, batch)[0].double().cpu().numpy()
    ids = batch.inputs["input_ids"][0].tolist()
    words = [vlm.tokenizer.decode([token]).strip() or "\\n" for token in ids]
    kinds = {kind: batch[kind][0].cpu().numpy() for kind in ("text", "visual")}
    kind = np.where(kinds["visual"], "visual", np.where(kinds["text"], "text", "bos"))
    row, col = _places(batch.grids[0], kinds["visual"])
    parts = [
        pd.DataFrame({"layer": layer, "pos": range(len(ids)), "kind": kind,
                      "token": np.where(kinds["visual"], "", words), "row": row, "col": col,
                      "value": rows[layer]})
        for layer in sorted({same_depth(depth, PAPER_LAYERS, vlm.num_layers) for depth in DEPTHS})
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _places(grid: Any, visual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of every position, -1 off the grid."""
    places = np.full((2, len(visual)), -1)
    if grid is not None:
        at = np.flatnonzero(visual)[grid.first : grid.first + grid.rows * grid.cols]
        places[:, at] = np.indices((grid.rows, grid.cols)).reshape(2, -1)
    return places[0], places[1]


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw curves over layers, and beside them the sample's image and words at three depths."""
    from attrib.plots.drawing import new_figure

    figure = new_figure(11.0, 5.2)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.35))
    left, right = halves
    draw_profile(left.subplots(), measured, style)
    strips = measured.tables["strips"]
    layers = layers_of(strips)
    axes: Any = right.subplots(len(layers), 2, width_ratios=(1, 4), squeeze=False)
    top = float(floats(select_rows(strips, kind="text"), "value").max())
    for (picture, words), layer in zip(axes, layers, strict=True):
        here = select_rows(strips, layer=layer)
        draw_picture(picture, here, measured.images["sample"], style)
        draw_words(words, here, top, style)
        if layer != layers[-1]:
            words.set_xticklabels([])
    right.suptitle("One sample: attention to each visual token, and to each word", fontsize=10.5)
    return figure


def draw_profile(ax: "Axes", measured: Measured, style: Style) -> None:
    """Draw the mean attention per token of each kind over layers, with 95 % intervals."""
    from attrib.plots.curves import Series, draw_curve, finish

    profile = measured.tables["profile"]
    layers = layers_of(profile)
    for column, label, color, marker, line in CURVES:
        mean, low, high = mean_interval(by_layer(profile, column), seed=measured.about["seed"])
        series = Series(label, {}, style.colors[color], marker, line, hollow=line == "--")
        rows = pd.DataFrame({"layer": layers, "mean": mean, "low": low, "high": high})
        draw_curve(ax, series, rows)
    finish(ax, f"Attention of the last prompt token (n = {measured.about['n']})", 3)
    ax.set_ylabel("attention per token, mean over heads")
    ax.set_ylim(bottom=0)


def draw_picture(ax: "Axes", rows: pd.DataFrame, pixels: np.ndarray, style: Style) -> None:
    """Draw the attention of one layer to visual tokens over the image."""
    from attrib.plots.overlay import draw_overlay

    cells = rows.loc[integers(rows, "row") >= 0]
    image = Image.fromarray(pixels)
    row, col = integers(cells, "row"), integers(cells, "col")
    grid = np.full((row.max() + 1, col.max() + 1), np.nan)
    grid[row, col] = floats(cells, "value")
    draw_overlay(
        ax, image, grid, (0.0, 0.0, float(image.width), float(image.height)), colors=style.heat
    )
    ax.set_title(f"layer {layers_of(rows)[0]}", fontsize=9)
    ax.set_xlabel(f"at most {grid.max():.2g}", fontsize=8, color=style.colors["muted"])


def draw_words(ax: "Axes", rows: pd.DataFrame, top: float, style: Style) -> None:
    """Draw the attention of one layer to each word as bars."""
    words = select_rows(rows, kind="text")
    ax.bar(np.arange(len(words)), floats(words, "value"), color=style.colors["text"], width=0.8)
    ax.set_ylim(0, 1.05 * top)
    ax.set_xlim(-0.7, len(words) - 0.3)
    ax.set_xticks(
        range(len(words)), [str(word) for word in words["token"]], rotation=90, fontsize=7.5
    )
    ax.tick_params(axis="y", labelsize=8)
    kinds = (("BOS", "bos"), ("visual tokens", "visual"), ("words", "text"))
    shares = ", ".join(f"{name} {_share(rows, kind):.2f}" for name, kind in kinds)
    ax.set_title(f"share of all: {shares}", fontsize=8.5, fontweight="normal", loc="right")


def _share(rows: pd.DataFrame, kind: str) -> float:
    """Return the sum of attention to all tokens of a kind."""
    return float(floats(select_rows(rows, kind=kind), "value").sum())


def verdict(measured: Measured) -> Verdict:
    """Check that words get more than visual tokens, with peaks in different shallow layers."""
    profile = measured.tables["profile"]
    find = partial(by_layer, profile)
    seed, n = measured.about["seed"], measured.about["n"]
    gap = find("text_mean") - find("visual_mean")
    mean, low, high = mean_interval(gap.mean(1), seed=seed)
    above = int((mean_interval(gap, seed=seed)[1] > 0).sum())
    layers = gap.shape[1]
    (text, texts), (visual, visuals) = (
        peak(find(f"{k}_mean"), seed=seed) for k in ("text", "visual")
    )
    shallow = float(((texts < layers / 2) & (visuals < layers / 2)).mean())
    apart = float((texts != visuals).mean())
    ratio = find("visual_top3").mean() / find("visual_mean").mean()
    more = low > 0 and above > layers / 2
    early = shallow >= SURE and apart >= SURE
    return Verdict(bool(more and early), (
        f"a word gets {mean:.3f} more attention than a visual token (95 % interval {low:.3f} to "
        f"{high:.3f}, n = {n}), with an interval above 0 in {above} of {layers} layers; the means "
        f"are highest in layer {text} for words and {visual} for visual tokens: both in the first "
        f"half of the layers in {shallow:.0%} of resamples, in different layers in {apart:.0%}; "
        f"the three most attended visual tokens get {ratio:.1f} times the mean of all. Words "
        f"{'get' if more else 'do not get'} more attention; the peaks are "
        f"{'' if early else 'not '}in two different shallow layers."
    ))  # fmt: skip


def alt(measured: Measured) -> str:
    """Describe the curves and strips."""
    profile = measured.tables["profile"]
    curves = [f"{label}: {_list(by_layer(profile, c).mean(0))}" for c, label, *_ in CURVES]
    strips = measured.tables["strips"]
    samples = [
        f"layer {layer}: {_share(here, 'visual'):.2f} to the image, "
        f"{_share(here, 'text'):.2f} to words"
        for layer in layers_of(strips)
        for here in [select_rows(strips, layer=layer)]
    ]
    return (
        f"Attention per token from layer 0 to {layers_of(profile)[-1]}, mean over "
        f"{measured.about['n']} samples. {'; '.join(curves)}. In one sample, {'; '.join(samples)}."
    )


def _list(values: Float[np.ndarray, " layer"]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


FIGURE = Figure(
    name="dualedit_figure_1",
    source="DualEdit, Figure 1",
    title="Attention of the last prompt token to words and to visual tokens",
    claim=(
        "In every layer a word gets far more attention than a visual token on average, and only a "
        "few visual tokens get much; the averages of both are highest in shallow layers, which "
        "differ between the two."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
    published=(
        "words get far more attention; the peaks of both are in shallow layers, not in the same"
    ),
)
