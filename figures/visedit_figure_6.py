"""VisEdit, Figure 6: a control, the contributions to a token that the model does not predict."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.contribution_bars import (
    MODULES,
    contributions,
    depth_increase,
    describe_bars,
    draw_bars,
    largest,
)
from figures.estimates import Estimate, all_hold, bootstrap_means, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.frames import by_layer
from figures.measure import load_inputs, provenance
from figures.style import Style
from figures.visedit_figure_5 import OTHERS, by_model, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ORDER = 10**-0.5  # a ratio below this is closer to a tenth than to one
WRONG = "_wrong"
LAST = 2  # last layers without "no trend": the original excludes its last few of 32


def measure(setting: Setting) -> Measured:
    """Measure contributions to the right token, and with the suffix "_wrong" to a wrong one."""
    names = (OTHERS[0], Setting().model, OTHERS[1])
    table = pd.concat([both_keys(one) for one in settings(setting, names)], ignore_index=True)
    n = min(len(set(rows["example"])) for rows in by_model(table).values())
    about = provenance("visedit_figure_6", setting, n)
    return Measured({"contributions": table}, about=about | {"model": ", ".join(by_model(table))})


def both_keys(setting: Setting) -> pd.DataFrame:
    """Return contributions to both tokens, for the samples with an unrelated answer."""
    vlm, data = load_inputs(setting)
    right, wrong = (contributions(vlm, data, key=key) for key in ("argmax", "wrong"))
    both = right.merge(wrong, on=["example", "layer"], suffixes=("", WRONG), sort=False)
    return both.assign(model=setting.model)


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw the bars of the wrong key per backbone, and a line at the right key's largest bar."""
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
    """Check that contributions to a wrong token are a tenth as large and flat over depth."""
    seed = measured.about["seed"]
    held: list[bool | None] = []
    parts = []
    for name, table in by_model(measured.tables["contributions"]).items():
        ratio = relative_size(table, seed)
        left = estimate(depth_increase(table, WRONG, without_last=LAST), seed=seed)
        full = estimate(depth_increase(table, without_last=LAST), seed=seed)
        larger = ratio.above(ORDER)
        held += [
            None if larger is None else not larger,
            left.above(ORDER * max(full.mean, 0)) is False,
        ]
        parts.append(
            f"{name}: the largest mean contribution is {ratio} times that to "
            f"the right token, and deep layers except the last {LAST} contribute {left} more than "
            f"shallow ones (right token: {full})"
        )
    limits = f"n = {measured.about['n']}, 95 % intervals; a tenth means below {ORDER:.2f}"
    return Verdict(all_hold(*held), f"{'; '.join(parts)} ({limits}).")


def relative_size(table: pd.DataFrame, seed: int) -> Estimate:
    """Return the largest mean contribution to the wrong token over that to the right one."""
    wrong, right = _tops(table, WRONG, seed), _tops(table, "", seed)
    low, high = np.percentile(wrong / right, [2.5, 97.5])
    size = largest(table, WRONG) / largest(table)
    return Estimate(size, float(low), float(high), len(set(table["example"])))


def _tops(table: pd.DataFrame, suffix: str, seed: int) -> Float[np.ndarray, " draw"]:
    """Return the largest absolute mean contribution of each resample."""
    values = np.stack([by_layer(table, f"{module}{suffix}") for module, *_ in MODULES], -1)
    return np.abs(bootstrap_means(values, seed=seed)).max((1, 2))


def alt(measured: Measured) -> str:
    """Describe the bars."""
    parts = [
        f"{name}, {describe_bars(table, WRONG)}; the right token gets up to {largest(table):.3f}"
        for name, table in by_model(measured.tables["contributions"]).items()
    ]
    return f"Bars of each layer's mean contribution to a wrong token. {'. '.join(parts)}."


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
    published="an order of magnitude smaller, larger in the last few layers alone",
)
