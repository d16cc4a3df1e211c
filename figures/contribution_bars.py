"""Contributions of attention and MLP over the layers as bars: what three of the figures share."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.measuring import by_layer, layers_of, mean_interval, tables_of, wide
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.analyses.contributions import Norm
    from attrib.data import EditData
    from attrib.model.vlm import VLM

MODULES = (("attn", "attention", "attention", ""), ("mlp", "MLP", "mlp", "///"))
WIDTH = 0.4  # of a bar, where layers are 1 apart


def contributions(
    vlm: "VLM", data: "EditData", *, key: str = "argmax", norms: "Sequence[Norm]" = ("none",)
) -> pd.DataFrame:
    """Columns: example, layer, and MODULE for the first of `norms`, MODULE_NORM for the others."""
    from attrib.analyses.contributions import measure_contributions

    parts = []
    for norm in norms:
        run = partial(measure_contributions, key=key, norm=norm)
        table = wide(tables_of(vlm, data, run)["contributions"], "module", ("example", "layer"))
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
    """Mean contribution per layer, a bar for attention and a hatched one for the MLP.

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
    ax.set_xticks(layers)
    ax.set_xlabel("layer")
    ax.set_ylabel("contribution to the key token")
    ax.set_title(title)
    if legend:
        ax.legend(loc="upper left", fontsize=9)


def rise(
    table: pd.DataFrame, suffix: str = "", *, without_last: int = 0
) -> Float[np.ndarray, " example"]:
    """How much more a module of the deeper half of the layers contributes than one of the other.

    Args:
        table: of `contributions`.
        suffix: of the columns, for another norm or key.
        without_last: leave out so many of the last layers.
    """
    values = by_layer(table, f"attn{suffix}") + by_layer(table, f"mlp{suffix}")
    half = values.shape[1] // 2
    deep = values[:, half : values.shape[1] - without_last]
    return (deep.mean(1) - values[:, :half].mean(1)) / 2


def halves(table: pd.DataFrame) -> tuple[float, float]:
    """Mean contribution of a module in the first and in the second half of the layers."""
    values = (by_layer(table, "attn") + by_layer(table, "mlp")).mean(0) / 2
    half = len(values) // 2
    return float(values[:half].mean()), float(values[half:].mean())


def largest(table: pd.DataFrame, suffix: str = "") -> float:
    """The largest mean contribution of a module, by size."""
    means = [by_layer(table, f"{module}{suffix}").mean(0) for module, *_ in MODULES]
    return float(np.abs(np.stack(means)).max())


def bars_in_words(table: pd.DataFrame, suffix: str = "") -> str:
    """The mean contributions, layer by layer."""
    means = {label: by_layer(table, f"{module}{suffix}").mean(0) for module, label, *_ in MODULES}
    said = (f"{label} {', '.join(f'{one:.3f}' for one in mean)}" for label, mean in means.items())
    return f"from layer 0 on: {'; '.join(said)}"
