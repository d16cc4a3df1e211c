"""Contributions of attention and MLP per layer, measured and drawn as bars."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.estimates import mean_interval
from figures.frames import by_layer, layers_of, pivot_wide
from figures.measure import collect_tables
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.analyses.contributions import Norm
    from attrib.data import EditData
    from attrib.model.vlm import VLM

MODULES = (("attn", "attention", "attention", ""), ("mlp", "MLP", "mlp", "///"))
MOST_TICKS = 15  # labels of layers that fit side by side
WIDTH = 0.4  # of a bar; layers are 1 apart


def contributions(
    vlm: "VLM", data: "EditData", *, key: str = "argmax", norms: "Sequence[Norm]" = ("none",)
) -> pd.DataFrame:
    """Measure contributions.

    Columns: example, layer, and MODULE for the first of `norms`, MODULE_NORM for the others.
    """
    from attrib.analyses.contributions import measure_contributions

    parts = []
    for norm in norms:
        run = partial(measure_contributions, key=key, norm=norm)
        table = pivot_wide(
            collect_tables(vlm, data, run)["contributions"], "module", ("example", "layer")
        )
        suffix = "" if norm == norms[0] else f"_{norm}"
        parts.append(table.rename(columns={m: f"{m}{suffix}" for m, *_ in MODULES}))
    first, *others = parts
    for other in others:
        first = first.merge(other, on=["example", "layer"], sort=False)
    return first


def draw_bars(
    ax: "Axes",
    table: pd.DataFrame,
    style: Style,
    title: str,
    *,
    suffix: str = "",
    seed: int = 0,
    legend: bool = True,
) -> None:
    """Draw the mean contribution per layer: a bar for attention, a hatched one for the MLP.

    Whiskers are 95 % bootstrap intervals of the mean.
    """
    layers = np.asarray(layers_of(table))
    for i, (module, label, color, hatch) in enumerate(MODULES):
        mean, low, high = mean_interval(by_layer(table, f"{module}{suffix}"), seed=seed)
        ax.bar(
            layers + (i - 0.5) * WIDTH, mean, WIDTH, yerr=np.stack([mean - low, high - mean]),
            color=style.colors[color], hatch=hatch, edgecolor="white", linewidth=0, label=label,
            error_kw={"elinewidth": 0.9, "ecolor": style.colors["ink"]},
        )  # fmt: skip
    ax.axhline(0, color=style.colors["muted"], linewidth=0.8)
    ax.set_xticks(layers[:: -(-len(layers) // MOST_TICKS)])
    ax.set_xlabel("layer")
    ax.set_ylabel("contribution to the key token")
    ax.set_title(title)
    if legend:
        ax.legend(loc="upper left", fontsize=9)


def depth_increase(
    table: pd.DataFrame, suffix: str = "", *, without_last: int = 0
) -> Float[np.ndarray, " example"]:
    """Return the mean contribution of a module in the deeper half minus that in the other half.

    Args:
        table: The table of `contributions`.
        suffix: Suffix of the columns, for another norm or key.
        without_last: Number of last layers to leave out.
    """
    values = by_layer(table, f"attn{suffix}") + by_layer(table, f"mlp{suffix}")
    half = values.shape[1] // 2
    deep = values[:, half : values.shape[1] - without_last]
    return (deep.mean(1) - values[:, :half].mean(1)) / 2


def half_means(table: pd.DataFrame) -> tuple[float, float]:
    """Return the mean contribution of a module in the first and in the second half."""
    values = (by_layer(table, "attn") + by_layer(table, "mlp")).mean(0) / 2
    half = len(values) // 2
    return float(values[:half].mean()), float(values[half:].mean())


def largest(table: pd.DataFrame, suffix: str = "") -> float:
    """Return the largest absolute mean contribution of a module."""
    means = [by_layer(table, f"{module}{suffix}").mean(0) for module, *_ in MODULES]
    return float(np.abs(np.stack(means)).max())


def describe_bars(table: pd.DataFrame, suffix: str = "") -> str:
    """Describe the mean contributions, layer by layer."""
    means = {label: by_layer(table, f"{module}{suffix}").mean(0) for module, label, *_ in MODULES}
    parts = (f"{label} {', '.join(f'{one:.3f}' for one in mean)}" for label, mean in means.items())
    return f"from layer 0 on: {'; '.join(parts)}"
