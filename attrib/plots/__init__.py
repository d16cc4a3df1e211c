"""Figures of results: each function takes a `Result` and an Axes, and returns the Axes.

The only package that imports matplotlib. Series differ by colour (safe for colour-blind readers),
by marker and by line style. Drawn twice, a result gives the same file, byte for byte.
"""

from attrib.plots.curves import attention, contributions, faithfulness, heatmap_by_layer, learning
from attrib.plots.deletion import deletion
from attrib.plots.drawing import describe, new_axes, save, share_scale, svg
from attrib.plots.gate import gate_auc, gate_similarity, gate_tokens
from attrib.plots.heatmaps import heatmap_pictures, heatmaps
from attrib.plots.interventions import patching, patching_difference, sensitivity
from attrib.plots.overlay import (
    HEATMAP_COLORS,
    heatmap_palette,
    heatmap_png,
    heatmap_scale_png,
    overlay,
    token_bars,
)
from attrib.plots.selection import (
    evidence_kinds,
    layer_evidence,
    layer_scores,
    mark_layers,
    selection,
)

__all__ = [
    "HEATMAP_COLORS",
    "attention",
    "contributions",
    "deletion",
    "describe",
    "evidence_kinds",
    "faithfulness",
    "gate_auc",
    "gate_similarity",
    "gate_tokens",
    "heatmap_by_layer",
    "heatmap_palette",
    "heatmap_pictures",
    "heatmap_png",
    "heatmap_scale_png",
    "heatmaps",
    "layer_evidence",
    "layer_scores",
    "learning",
    "mark_layers",
    "new_axes",
    "overlay",
    "patching",
    "patching_difference",
    "save",
    "selection",
    "sensitivity",
    "share_scale",
    "svg",
    "token_bars",
]
