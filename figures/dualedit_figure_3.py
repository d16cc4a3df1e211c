"""DualEdit, Figure 3: its framework, drawn from a trained editor and checked on what it does."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from figures.editor_reading import UNEXPECTED, measure_framework
from figures.estimates import counted
from figures.figure import Figure, Measured, Verdict
from figures.framework_drawing import draw_framework

NAME = "dualedit_figure_3"


def verdict(measured: Measured) -> Verdict:
    """Whether both adapters act together, where the gate opens, and nothing else is touched."""
    acts, keys = measured.tables["acts"], list(measured.tables["sites"]["key"])
    is_open = acts["open"].to_numpy() == 1
    together = as_drawn(acts, keys)
    shut = ~is_open
    confined = acts[UNEXPECTED].to_numpy() == 0
    same = acts["moved"].to_numpy()[shut] == 0
    modalities = set(measured.tables["sites"]["modality"]) == {"text", "visual"}
    gated = not measured.tables["gate"].empty
    holds = bool(together.all() and confined.all() and same.all() and modalities and gated)
    statistic = (
        f"all adapters wrote all of their positions where the gate opened and none where it did "
        f"not in {counted(together, 'inputs')} of {measured.about['n']} edits; no other position "
        f"was written in {counted(confined, 'inputs')}; where the gate stayed shut the output was "
        f"the same bit for bit in {counted(same, 'inputs')}. The gate opened for "
        f"{_rate(acts, is_open, ('request', 'text_generality', 'visual_generality'))} of the "
        f"inputs that an edit covers and for {_rate(acts, is_open, None)} of the others"
    )
    return Verdict(holds, statistic)


def as_drawn(acts: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Per input whether its adapters wrote everything where the gate was open, else nothing."""
    wrote = acts[list(keys)].to_numpy(float)
    wanted = (acts["open"].to_numpy() == 1)[:, None].astype(float)
    return ((wrote == wanted) | np.isnan(wrote)).all(1)


def alt(measured: Measured) -> str:
    """The drawing in words."""
    about, sites = measured.about, measured.tables["sites"]
    written = " and ".join(
        f"the {modality} tokens after layer {layer}"
        for modality, layer in zip(sites["modality"], sites["layer"], strict=True)
    )
    first = sites.iloc[0]
    gate = measured.tables["gate"]
    decides = "There is no gate."
    if not gate.empty:
        one = gate.iloc[0]
        decides = (
            f"A {one['kind']} gate reads the output of layer {one['layer']}, compares it with the "
            f"edit and opens all adapters from {one['threshold']:.2f} on."
        )
    mapper = ", scaled per token by an influence mapper" if first["mapper"] else ""
    return (
        f"Data flow of {about['editor']} in {about['model']} ({about['num_layers']} frozen "
        f"layers): adapters write {written}. Each is a cross-attention of "
        f"{first['num_heads']} heads and width {first['d_adapter']} from these states to what is "
        f"kept of the edit (width {first['d_signal']}), added to the states{mapper}; "
        f"{about['trainable']:,} trained weights in all. {decides}"
    )


FIGURE = Figure(
    NAME,
    "DualEdit, Figure 3",
    "Framework of DualEdit, drawn from a trained editor",
    "Two learnable adapters, one for text and one for visual states, are put into chosen layers of "
    "the frozen model. A gate compares the last token's state with the edit's and switches both "
    "adapters on or off together.",
    partial(measure_framework, name="dualedit", figure=NAME),
    draw_framework,
    verdict,
    alt,
)


def _rate(acts: pd.DataFrame, is_open: np.ndarray, inputs: Sequence[str] | None) -> str:
    covered = acts["input"].isin(("request", "text_generality", "visual_generality"))
    at = acts["input"].isin(inputs) if inputs is not None else ~covered
    return f"{100 * float(np.mean(is_open[at.to_numpy()])):.1f} %"
