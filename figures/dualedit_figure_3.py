"""DualEdit, Figure 3: the framework, drawn from a trained editor and checked on its effects."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from figures.editor_diagram import draw_editor
from figures.editor_structure import OTHER_POSITIONS, measure_framework
from figures.estimates import count_text
from figures.figure import Figure, Measured, Verdict

NAME = "dualedit_figure_3"
COVERED = ("request", "text_generality", "visual_generality")


def verdict(measured: Measured) -> Verdict:
    """Check that both adapters act exactly where the gate opens, and change nothing else."""
    effects, keys = measured.tables["effects"], list(measured.tables["sites"]["key"])
    is_open = effects["open"].to_numpy() == 1
    together = follows_gate(effects, keys)
    confined = effects[OTHER_POSITIONS].to_numpy() == 0
    same = effects["output_changed"].to_numpy()[~is_open] == 0
    covered = effects["input"].isin(COVERED).to_numpy()
    modalities = set(measured.tables["sites"]["modality"]) == {"text", "visual"}
    gated = not measured.tables["gate"].empty
    holds = bool(together.all() and confined.all() and same.all() and modalities and gated)
    statistic = (
        f"all adapters wrote all of their positions if the gate opened and none if it did not in "
        f"{count_text(together, 'inputs')} of {measured.about['n']} edits; no other position was "
        f"written in {count_text(confined, 'inputs')}; if the gate stayed shut, the output was the "
        f"same bit for bit in {count_text(same, 'inputs')}. The gate opened for "
        f"{_percent(is_open[covered])} of the inputs that an edit covers and for "
        f"{_percent(is_open[~covered])} of the others"
    )
    return Verdict(holds, statistic)


def follows_gate(effects: pd.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """Return per input whether adapters wrote all positions if the gate was open, else none."""
    wrote = effects[list(keys)].to_numpy(float)
    wanted = (effects["open"].to_numpy() == 1)[:, None].astype(float)
    return ((wrote == wanted) | np.isnan(wrote)).all(1)


def alt(measured: Measured) -> str:
    """Describe the drawing."""
    about, sites = measured.about, measured.tables["sites"]
    written = " and ".join(
        f"the {modality} tokens after layer {layer}"
        for modality, layer in zip(sites["modality"], sites["layer"], strict=True)
    )
    first = sites.iloc[0]
    gate = measured.tables["gate"]
    decision = "There is no gate."
    if not gate.empty:
        one = gate.iloc[0]
        decision = (
            f"A {one['kind']} gate reads the output of layer {one['layer']}, compares it with the "
            f"edit and opens all adapters from {one['threshold']:.2f} on."
        )
    mapper = ", scaled per token by an influence mapper" if first["mapper"] else ""
    return (
        f"Data flow of {about['editor']} in {about['model']} ({about['num_layers']} frozen "
        f"layers): adapters write {written}. Each is a cross-attention of "
        f"{first['num_heads']} heads and width {first['d_adapter']} from these states to the "
        f"stored edit (width {first['d_signal']}), added to the states{mapper}; "
        f"{about['trainable']:,} trained weights in all. {decision}"
    )


FIGURE = Figure(
    NAME,
    "DualEdit, Figure 3",
    "Framework of DualEdit, drawn from a trained editor",
    "Two learnable adapters, one for text and one for visual states, are put into chosen layers of "
    "the frozen model. A gate compares the last token's state with the edit's and switches both "
    "adapters on or off together.",
    partial(measure_framework, name="dualedit", figure=NAME),
    draw_editor,
    verdict,
    alt,
    published="one adapter for each modality, and one gate for both",
)


def _percent(held: np.ndarray) -> str:
    return f"{100 * float(np.mean(held)):.1f} %"
