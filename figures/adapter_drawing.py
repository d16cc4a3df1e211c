"""The inside of an editor's adapter as a drawing, and what it was trained on."""

from collections.abc import Mapping
from typing import Any

from figures.boxes import Canvas
from figures.figure import Measured

SEEN = {
    "embed": "input embeddings",
    "site": "states at this layer",
    "both": "input embeddings\nand states at this layer",
    "none": "nothing (zeros)",
}
SPANS = {"all": "of all its positions", "answer": "of its last prompt\ntoken and its target"}
TERMS = {
    "reliability": "new answer to the request",
    "generality": "new answer to rephrases, other pictures",
    "locality": "old answer to unrelated inputs",
    "hard": "old answer to near neighbours",
    "mapper_up": "mapper: high where the edit applies",
    "mapper_down": "mapper: low on unrelated images",
    "mapper_attribution": "mapper: like the attribution heatmap",
}
OWN, EDIT = 30.0, 74.0  # columns: the states that are moved, the edit


def draw_adapter(canvas: Canvas, measured: Measured) -> None:
    """One adapter from its inputs to its output, and under it the terms of the loss."""
    site = measured.tables["sites"].iloc[0].to_dict()
    _draw_inputs(canvas, site)
    _draw_attention(canvas, site)
    _draw_losses(canvas, measured)


def _draw_inputs(canvas: Canvas, site: Mapping[str, Any]) -> None:
    kind = site["modality"]
    canvas.box(OWN, 32, 40, 8, f"states h of its tokens\nwidth {site['d_model']}", kind)
    seen = f"the edit's {SEEN[site['signal']]}\n{SPANS[site['signal_span']]}"
    canvas.box(EDIT, 34, 42, 16, f"{seen}\nwidth {site['d_signal']}", "both", size=8)
    units = "own units, layer norm" if site["own_units"] else "layer norm"
    inner = site["d_adapter"]
    canvas.box(OWN, 47, 40, 8, f"{units}\nquery {site['d_model']} to {inner}")
    canvas.box(EDIT, 49, 42, 6, f"key, value {site['d_signal']} to {inner}")
    canvas.arrow([(OWN, 36), (OWN, 43)])
    canvas.arrow([(EDIT, 42), (EDIT, 46)])


def _draw_attention(canvas: Canvas, site: Mapping[str, Any]) -> None:
    heads = f"cross-attention, {site['num_heads']} heads"
    canvas.box(52, 59, 80, 6, heads, site["modality"], fill=0.25)
    canvas.arrow([(OWN, 51), (OWN, 56)])
    canvas.arrow([(EDIT, 52), (EDIT, 56)])
    canvas.box(OWN, 69, 40, 6, f"output map {site['d_adapter']} to {site['d_model']}")
    canvas.arrow([(OWN, 62), (OWN, 66)])
    if site["mapper"]:
        canvas.box(OWN, 79, 14, 6, "times")
        words = "influence mapper\nsigmoid of <h, last token\nof the edit's prompt>"
        canvas.box(EDIT, 76, 42, 12, words, "visual")
        canvas.arrow([(OWN, 72), (OWN, 76)])
        canvas.arrow([(EDIT - 21, 79), (OWN + 7, 79)])
        canvas.arrow([(OWN, 82), (OWN, 86)])
    else:
        canvas.arrow([(OWN, 72), (OWN, 86)])
    canvas.box(OWN, 89, 14, 6, "plus")
    canvas.arrow([(OWN - 20, 32), (4, 32), (4, 89), (OWN - 7, 89)])
    canvas.arrow([(OWN, 92), (OWN, 98)])
    canvas.note(OWN + 4, 97, "moved states", ha="left")


def _draw_losses(canvas: Canvas, measured: Measured) -> None:
    about = measured.about
    losses = measured.tables["losses"]
    lines = [
        f"{weight:g} x {TERMS[term]}"
        for term, weight in zip(losses["term"], losses["weight"], strict=True)
    ]
    trained = f"Loss, {about['steps']:,} steps on {about['samples']:,} edits:"
    head = trained if about["steps"] else "Not trained"
    canvas.note(2, 22, "\n".join([head, *lines]), ha="left", va="top", size=8)
