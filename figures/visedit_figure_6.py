"""The control of the contributions: what they are for a token that the model does not predict."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.contribution_bars import (
    MODULES,
    bars_in_words,
    contributions,
    draw_bars,
    largest,
    rise,
)
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.measuring import about, by_layer, opened, resampled
from figures.style import Style
from figures.visedit_figure_5 import OTHERS, by_model, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ORDER = 10**-0.5  # ratios below this are nearer to a tenth than to one
WRONG = "_wrong"
LAST = 2  # layers that the original excepts from "no trend": its last few of 32


def measure(setting: Setting) -> Measured:
    """The table "contributions": to the right token, with the suffix "_wrong" to a wrong one."""
    names = (OTHERS[0], Setting().model, OTHERS[1])
    table = pd.concat([both_keys(one) for one in settings(setting, names)], ignore_index=True)
    n = min(len(set(rows["example"])) for rows in by_model(table).values())
    made = about("visedit_figure_6", setting, n)
    return Measured({"contributions": table}, about=made | {"model": ", ".join(by_model(table))})


def both_keys(setting: Setting) -> pd.DataFrame:
    """Contributions to both tokens, over the samples that have an unrelated answer."""
    vlm, data = opened(setting)
    right, wrong = (contributions(vlm, data, key=key) for key in ("argmax", "wrong"))
    both = right.merge(wrong, on=["example", "layer"], suffixes=("", WRONG), sort=False)
    return both.assign(model=setting.model)


def draw(measured: Measured, style: Style) -> "Drawing":
    """Per backbone a panel of the wrong key's bars; a line where the right key's largest bar is."""
    from attrib.plots.drawing import new_figure

    tables = by_model(measured.tables["contributions"])
    figure = new_figure(3.9 * len(tables), 3.9)
    axes: Any = figure.subplots(1, len(tables), squeeze=False, sharey=True)
    for i, (ax, (name, table)) in enumerate(zip(axes[0], tables.items(), strict=True)):
        top, seed = largest(table), measured.about["seed"]
        draw_bars(ax, table, style, name, suffix=WRONG, seed=seed, legend=False)
        ax.axhline(top, color=style.colors["ink"], linestyle="--", linewidth=1.2)
        ax.annotate(f"right key: up to {top:.2f}", (0.02, top), xytext=(0, 3), fontsize=9,
                    xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
        if i:
            ax.set_ylabel("")
    axes[0, 0].set_ylim(top=1.15 * max(map(largest, tables.values())))
    axes[0, 0].set_ylabel(f"contribution to a wrong token (n = {measured.about['n']})")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def verdict(measured: Measured) -> Verdict:
    """Whether contributions to a wrong token are a tenth as large and do not rise with depth."""
    seed = measured.about["seed"]
    held: list[bool | None] = []
    said = []
    for name, table in by_model(measured.tables["contributions"]).items():
        ratio, low, high = scale(table, seed)
        left = estimate(rise(table, WRONG, without_last=LAST), seed=seed)
        full = estimate(rise(table, without_last=LAST), seed=seed)
        smaller = True if high < ORDER else (False if low > ORDER else None)
        held += [smaller, left.above(ORDER * max(full.mean, 0)) is False]
        said.append(
            f"{name}: the largest mean contribution is {ratio:.2f} times [{low:.2f}, {high:.2f}] "
            f"that to the right token, and deep layers but the last {LAST} contribute {left} more "
            f"than shallow ones (right token: {full})"
        )
    limits = f"n = {measured.about['n']}, 95 % intervals; a tenth is meant up to {ORDER:.2f}"
    return Verdict(all_hold(*held), f"{'; '.join(said)} ({limits}).")


def scale(table: pd.DataFrame, seed: int) -> tuple[float, float, float]:
    """The largest mean contribution to the wrong token, over that to the right; 95 % interval."""
    wrong, right = _tops(table, WRONG, seed), _tops(table, "", seed)
    low, high = np.percentile(wrong / right, [2.5, 97.5])
    return largest(table, WRONG) / largest(table), float(low), float(high)


def _tops(table: pd.DataFrame, suffix: str, seed: int) -> Float[np.ndarray, " draw"]:
    """The largest mean contribution by size, in each resample."""
    values = np.stack([by_layer(table, f"{module}{suffix}") for module, *_ in MODULES], -1)
    return np.abs(resampled(values, seed=seed)).max((1, 2))


def alt(measured: Measured) -> str:
    """The bars in words."""
    said = [
        f"{name}, {bars_in_words(table, WRONG)}; the right token gets up to {largest(table):.3f}"
        for name, table in by_model(measured.tables["contributions"]).items()
    ]
    return f"Bars of each layer's mean contribution to a wrong token. {'. '.join(said)}."


FIGURE = Figure(
    name="visedit_figure_6",
    source="VisEdit, Figure 6",
    title="What each layer contributes to a token that the model does not predict",
    claim=(
        "With the answer to an unrelated question as key token, contributions shrink by an order "
        "of magnitude, and do not rise from shallow to deep layers but for the last few: the "
        "contributions to the predicted token are no artefact."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
)
