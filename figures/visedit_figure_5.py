"""VisEdit, Figure 5: contributions of each layer in the other two backbones."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from figures.contribution_bars import (
    contributions,
    depth_increase,
    describe_bars,
    draw_bars,
    half_means,
)
from figures.estimates import all_hold, estimate
from figures.figure import Figure, Measured, Setting, Verdict
from figures.measure import load_inputs, provenance
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

OTHERS = ("tiny-blip2", "tiny-minigpt4")  # than the backbone of Figure 1


def measure(setting: Setting) -> Measured:
    """Measure the table "contributions" of both backbones, or of the setting's own model."""
    parts = [
        contributions(vlm, data, norms=("none", "final")).assign(model=one.model)
        for one in settings(setting, OTHERS)
        for vlm, data in [load_inputs(one)]
    ]
    table = pd.concat(parts, ignore_index=True)
    about = provenance(
        "visedit_figure_5", setting, _n(table), models=[part["model"][0] for part in parts]
    )
    return Measured({"contributions": table}, about=about | {"model": ", ".join(about["models"])})


def settings(setting: Setting, embedded: tuple[str, ...]) -> Iterator[Setting]:
    """Yield the setting with each embedded model, or unchanged if it names another model."""
    from dataclasses import replace

    yield from (
        [replace(setting, model=model) for model in embedded]
        if setting.model == Setting().model
        else [setting]
    )


def by_model(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each model, in order met."""
    names = dict.fromkeys(table["model"])
    return {str(name): pd.DataFrame(table[table["model"] == name]) for name in names}


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a panel of bars per backbone."""
    from attrib.plots.drawing import new_figure

    tables = by_model(measured.tables["contributions"])
    figure = new_figure(5.4 * len(tables), 3.8)
    axes: Any = figure.subplots(1, len(tables), squeeze=False, sharey=True)
    for i, (ax, (name, table)) in enumerate(zip(axes[0], tables.items(), strict=True)):
        seed = measured.about["seed"]
        draw_bars(ax, table, style, f"{name} (n = {_n(table)})", seed=seed, legend=i == 0)
        if i:
            ax.set_ylabel("")
    return figure


def verdict(measured: Measured) -> Verdict:
    """Check that deep layers contribute more in each backbone."""
    held, parts = [], []
    for name, table in by_model(measured.tables["contributions"]).items():
        found = estimate(depth_increase(table), seed=measured.about["seed"])
        final = estimate(depth_increase(table, "_final"), seed=measured.about["seed"])
        shallow, deep = half_means(table)
        held.append(found.above(0))
        parts.append(
            f"{name}: {shallow:.3f} in the first half of the layers, {deep:.3f} in the second "
            f"(difference {found}, 95 % interval, n = {found.n}; with the final norm first, as in "
            f"the published code, {final})"
        )
    return Verdict(all_hold(*held), f"mean contribution of a module; {'; '.join(parts)}.")


def alt(measured: Measured) -> str:
    """Describe the bars."""
    parts = [
        f"{name}, {describe_bars(table)}"
        for name, table in by_model(measured.tables["contributions"]).items()
    ]
    return f"Bars of the mean contribution of each layer's modules. {'. '.join(parts)}."


def _n(table: pd.DataFrame) -> int:
    return len(set(table["example"]))


FIGURE = Figure(
    name="visedit_figure_5",
    source="VisEdit, Figure 5",
    title="What each layer contributes to the answer, in the other two backbones",
    claim=(
        "In BLIP2-OPT and MiniGPT-4 too, attention and MLP of deep layers contribute more to the "
        "predicted token than those of shallow layers."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
    published="deep layers contribute more in BLIP2-OPT and MiniGPT-4, too",
)
