"""The framework of an editor as a drawing: what is read, what is written, and what decides."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from figures.adapter_drawing import draw_adapter
from figures.boxes import Canvas
from figures.figure import Measured
from figures.settling import settled
from figures.style import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LANES = {"visual": 14.0, "text": 34.0, "last": 50.0}
WIDTHS = {"visual": 17.0, "text": 17.0, "last": 10.0}
BAND = (30.0, 54.0)  # middle and width of the model
GATE, MEMORY = 69.0, 89.5  # middles of the two boxes beside it
TAP = 6.0  # beside the middle of an adapter, where the edit and the gate come in
BOTTOM, TOP = 14.0, 93.0
SEGMENT, SITES = 1.0, 1.7  # heights, relative to one another
NOTE = "Tokens are those of one sample. Adapters leave the last prompt token as it is."


def draw_framework(measured: Measured, style: Style) -> "Drawing":
    """The data flow of an edited pass, and the inside of an adapter."""
    from attrib.plots.drawing import new_figure

    drawing = new_figure(11.4, 6.6)
    left, right = drawing.subplots(1, 2, width_ratios=(1.75, 1))
    flow = Canvas.on(left, style.colors, f"(a) An edited pass of {measured.about['model']}")
    _draw_flow(flow, measured)
    inside = Canvas.on(right, style.colors, "(b) Inside an adapter, and its training")
    draw_adapter(inside, measured)
    return settled(drawing)


def _draw_flow(canvas: Canvas, measured: Measured) -> None:
    about, sites = measured.about, measured.tables["sites"]
    layers = sorted({int(layer) for layer in sites["layer"]})
    rows = _rows(layers, about["num_layers"])
    for lane, words in _inputs(about).items():
        canvas.box(LANES[lane], 6, WIDTHS[lane], 9, words)
        canvas.arrow([(LANES[lane], 10.5), (LANES[lane], 99)], head=False)
        canvas.arrow([(LANES[lane], 11), (LANES[lane], 15)])
    for low, high, words in rows["segments"]:
        canvas.box(BAND[0], (low + high) / 2, BAND[1], high - low, words)
    for layer, (low, high) in rows["sites"].items():
        for site in _records(sites):
            if site["layer"] == layer:
                _draw_site(canvas, site, low, high)
    canvas.box(BAND[0], 97, BAND[1], 5, "answer")
    for lane in LANES.values():
        canvas.arrow([(lane, 92.5), (lane, 94.5)])
    _draw_edit(canvas, measured, rows)
    if not any(sites["writes_last"]):
        canvas.note(3, -1.5, NOTE, size=7.5, ha="left", color=canvas.colors["muted"])


def _inputs(about: Mapping[str, Any]) -> dict[str, str]:
    text = about["text_tokens"] - 1
    return {
        "visual": f"image\n{about['visual_tokens']} visual tokens",
        "text": f"prompt\n{text} text tokens",
        "last": "last prompt\ntoken",
    }


def _rows(layers: list[int], num_layers: int) -> dict[str, Any]:
    """From bottom to top where runs of layers and rows of adapters lie, as (low, high, ...)."""
    ends = [*layers, num_layers - 1]
    total = SEGMENT * len(ends) + SITES * len(layers)
    unit, at, start = (TOP - BOTTOM) / total, BOTTOM, 0
    segments, sites = [], {}
    for layer in dict.fromkeys(ends):
        if start <= layer:
            words = f"layer {layer}" if start == layer else f"layers {start} to {layer}"
            segments.append((at + 1, at + SEGMENT * unit - 1, f"{words}, frozen"))
            at += SEGMENT * unit
        if layer in layers:
            sites[layer] = (at, at + SITES * unit)
            at += SITES * unit
        start = layer + 1
    return {"segments": segments, "sites": sites}


def _draw_site(canvas: Canvas, site: Mapping[str, Any], low: float, high: float) -> None:
    x, modality = LANES[site["modality"]], site["modality"]
    where = f"after layer {site['layer']}"
    mapper = "\nand its mapper" if site["mapper"] else ""
    words = f"{modality} adapter\n{where}{mapper}\n{site['parameters']:,} weights"
    canvas.box(x, (low + high) / 2, WIDTHS[modality], high - low - 9, words, modality, fill=0.25)
    canvas.arrow([(x + TAP, high - 2), (x + TAP, high - 4.5)], "both")
    canvas.arrow([(x + TAP, low + 2), (x + TAP, low + 4.5)], "ink", line="--")


def _draw_edit(canvas: Canvas, measured: Measured, rows: Mapping[str, Any]) -> None:
    """The edit that is kept, the gate, and their lines to the adapters."""
    sites, gate = measured.tables["sites"], measured.tables["gate"]
    low, high = min(rows["sites"].values())[0], max(rows["sites"].values())[1]
    middle = (BOTTOM + high) / 2
    canvas.box(MEMORY, middle, 18, high - BOTTOM, _memory(measured), "both")
    for layer, (bottom, top) in rows["sites"].items():
        mine = [LANES[s["modality"]] + TAP for s in _records(sites) if s["layer"] == layer]
        canvas.arrow([(MEMORY - 9, top - 2), (min(mine), top - 2)], "both", head=False)
        canvas.note(GATE, top + 0.2, "what adapters attend to", size=7.5, va="bottom")
        if not gate.empty:
            canvas.arrow(
                [(GATE, bottom + 2), (min(mine), bottom + 2)], "ink", line="--", head=False
            )
    if not gate.empty:
        _draw_gate(canvas, _records(gate)[0], low, max(rows["sites"].values())[0])


def _draw_gate(canvas: Canvas, gate: Mapping[str, Any], low: float, highest: float) -> None:
    y = low - 7
    canvas.arrow([(GATE, y), (GATE, highest + 2)], "ink", line="--", head=False)
    reads = {"prompt": "the prompt", "prompt_last": "last prompt",
             "sequence_last": "last target"}[gate["token"]]  # fmt: skip
    rule = {"learned": "log-odds", "cosine": "cosine"}
    words = f"{gate['kind']} gate\nreads {reads}\nafter layer {gate['layer']}"
    if gate["kind"] in rule:
        words += f"\nopens from {rule[gate['kind']]}\n{gate['threshold']:.2f} on"
    canvas.box(GATE, y, 19, 17, words, "neutral")
    canvas.arrow([(BAND[0] + BAND[1] / 2, y + 5.5), (GATE - 9.5, y + 5.5)])
    canvas.arrow([(MEMORY - 9, y), (GATE + 9.5, y)], "both")
    canvas.note(52, low + 3, "opens all or none", size=7.5, va="bottom", ha="left")


def _memory(measured: Measured) -> str:
    size = measured.about["edit_bytes"] / 1024
    return (
        "one edit, kept\n\nimage, prompt\nand target run\nonce through the\nunedited model\n\n"
        f"{size:,.1f} kB"
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")  # pyright: ignore[reportReturnType] - columns have names
