"""DualEdit, Figure 2: sensitivity of the output to noise on visual tokens, words and both."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from figures.estimates import all_hold, estimate, peak
from figures.figure import Figure, Measured, Setting, Verdict
from figures.frames import by_layer, layers_of, pivot_wide
from figures.measure import collect_tables, load_inputs, provenance
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from attrib.vocabulary import NoiseModality

PANELS: "tuple[tuple[NoiseModality, str], ...]" = (("visual", "a"), ("text", "b"), ("both", "c"))
SURE = 0.95  # share of resamples that must agree


def measure(setting: Setting) -> Measured:
    """Measure the table "noise": example, layer, and KL in nats in a column MODALITY_SIGMA."""
    from attrib.analyses.sensitivity import SIGMAS

    vlm, data = load_inputs(setting)
    both = collect_tables(vlm, data, _sweep(setting.seed, SIGMAS))["sweep"]
    noise = pivot_wide(both, ("modality", "sigma"), ("example", "layer"))
    n = len(set(noise["example"]))
    about = provenance("dualedit_figure_2", setting, n, sigmas=list(SIGMAS), unit="std", draws=1)
    return Measured({"noise": noise}, about=about)


def _sweep(seed: int, sigmas: tuple[float, ...]) -> Any:
    from attrib.analyses.sensitivity import measure_sensitivity

    def run(vlm: Any, batch: Any, samples: Any) -> dict[str, pd.DataFrame]:
        parts = [
            measure_sensitivity(
                vlm, batch, samples, modality=modality, sigmas=sigmas, unit="std", draws=1,
                seed=seed,
            )["sweep"]
            for modality, _ in PANELS
        ]  # fmt: skip
        return {"sweep": pd.concat(parts, ignore_index=True)}

    return run


def draw(measured: Measured, style: Style) -> "Drawing":
    """Draw a panel per modality and a curve per sigma; the last panel has the sum of the others."""
    from attrib.plots import share_scale
    from attrib.plots.drawing import new_figure

    figure = new_figure(11.5, 3.9)
    axes: Any = figure.subplots(1, 3)
    for ax, (modality, letter) in zip(axes, PANELS, strict=True):
        _panel(ax, measured, modality, letter)
    _sum(axes[2], measured, style)
    share_scale(*axes)
    for ax in axes[:2]:
        ax.get_legend().remove()
        ax.set_xlabel("perturbed layer")
    axes[2].set_xlabel("perturbed layer")
    return figure


def _panel(ax: "Axes", measured: Measured, modality: str, letter: str) -> None:
    from attrib.plots import sensitivity
    from attrib.plots.interventions import NOISE_ON
    from attrib.results import Result

    noise = measured.tables["noise"]
    columns = [name for name in noise.columns if name.startswith(f"{modality}_")]
    table = noise.melt(["example", "layer"], columns, "sigma", "value")
    table = table.assign(
        modality=modality, sigma=table["sigma"].str.removeprefix(f"{modality}_").astype(float)
    )
    result = Result("noise", table, {"seed": measured.about["seed"]})
    sensitivity(result, ax, title=f"({letter}) {NOISE_ON[modality]}")


def _sum(ax: "Axes", measured: Measured, style: Style) -> None:
    """Draw the sum of the effects on visual tokens and on words, at the largest sigma."""
    sigma = _sigmas(measured)[-1]
    apart = _values(measured, "visual", sigma) + _values(measured, "text", sigma)
    layers = layers_of(measured.tables["noise"])
    ax.plot(layers, apart.mean(0), ":", color=style.colors["ink"], linewidth=1.6,
            label=f"(a) + (b) at {sigma:g}")  # fmt: skip
    ax.set_ylim(0, max(ax.get_ylim()[1], 1.05 * apart.mean(0).max()))
    handles, labels = ax.get_legend_handles_labels()
    last = [len(labels) - 1, *range(len(labels) - 2, -1, -1)]
    ax.legend(
        [handles[i] for i in last], [labels[i] for i in last], fontsize=9, frameon=False,
        loc="upper left", bbox_to_anchor=(1.0, 1.0),
        title=f"noise, in std of the\nlayer's states; n = {measured.about['n']}", title_fontsize=9,
    )  # fmt: skip


def _sigmas(measured: Measured) -> list[float]:
    columns = measured.tables["noise"].columns
    return sorted(float(name.removeprefix("text_")) for name in columns if name.startswith("text_"))


def _values(measured: Measured, modality: str, sigma: float) -> Float[np.ndarray, "example layer"]:
    return by_layer(measured.tables["noise"], f"{modality}_{sigma}")


def verdict(measured: Measured) -> Verdict:
    """Check that words and image matter in different layers, and that effects do not add up."""
    seed, sigma = measured.about["seed"], _sigmas(measured)[-1]
    found = {modality: _values(measured, modality, sigma) for modality, _ in PANELS}
    (words, some), (image, others) = (peak(found[m], seed=seed) for m in ("text", "visual"))
    apart = float((some != others).mean())
    tops = None if SURE > apart > 1 - SURE else apart >= SURE
    centres = {modality: _centre(values) for modality, values in found.items()}
    tilt = estimate(centres["visual"] - centres["text"], seed=seed)
    excess = (found["both"] - found["visual"] - found["text"]).mean(1)
    beyond = estimate(excess, seed=seed)
    added = (found["visual"] + found["text"]).mean()
    small = _sigmas(measured)[0]
    faint = _values(measured, "both", small).mean() / (
        _values(measured, "visual", small).mean() + _values(measured, "text", small).mean()
    )
    additive = beyond.above(0) is None
    differs = tops or tilt.above(0) is not None
    return Verdict(all_hold(differs, not additive), (
        f"with noise of {sigma:g} std the output moves most in layer {words} for words and in "
        f"layer {image} for visual tokens (different in {apart:.0%} of resamples); the mean "
        f"layer of the effect is {np.nanmean(centres['text']):.1f} for words and "
        f"{np.nanmean(centres['visual']):.1f} for visual tokens (difference {tilt}, 95 % interval, "
        f"n = {tilt.n}). Noise on both moves it {found['both'].mean() / added:.2f} times as "
        f"far as the two effects added, a difference of {beyond} nats over all layers (with "
        f"noise of {small:g} std it is {faint:.2f} times)."
    ))  # fmt: skip


def _centre(values: Float[np.ndarray, "example layer"]) -> Float[np.ndarray, " example"]:
    """Return the mean layer of an effect, weighted by its size; NaN without an effect."""
    total = values.sum(1)
    with np.errstate(invalid="ignore"):
        return values @ np.arange(values.shape[1]) / np.where(total > 0, total, np.nan)


def alt(measured: Measured) -> str:
    """Describe the curves of the largest and the smallest sigma."""
    parts = []
    for modality, letter in PANELS:
        for sigma in (_sigmas(measured)[0], _sigmas(measured)[-1]):
            means = ", ".join(f"{v:.3g}" for v in _values(measured, modality, sigma).mean(0))
            parts.append(f"({letter}) {modality}, noise of {sigma:g} std: {means}")
    return (
        f"KL divergence of the output in nats, from noise in layer 0 to that in the last one, mean "
        f"over {measured.about['n']} samples. {'; '.join(parts)}."
    )


FIGURE = Figure(
    name="dualedit_figure_2",
    source="DualEdit, Figure 2",
    title="Sensitivity of the output to noise in each layer, on visual tokens, words and both",
    claim=(
        "Noise in different layers hits the output differently depending on whether it lands on "
        "visual tokens or on words, so the important layers of the two differ; noise on both gives "
        "a pattern of its own, which is not the sum of the two."
    ),
    measure=measure,
    draw=draw,
    verdict=verdict,
    alt=alt,
    published=(
        "the important layers of words and of visual tokens differ; the two effects do not add up"
    ),
)
