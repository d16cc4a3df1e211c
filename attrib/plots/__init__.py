"""Pictures of results: a `Result` and an Axes in, the Axes out. The only package with matplotlib.

Series differ by colour (safe for colour-blind readers), by marker and by line style. A figure
written twice from one result is the same file, byte for byte.
"""

from attrib.plots.curves import attention, contributions
from attrib.plots.drawing import describe, new_axes, save, share_scale, svg
from attrib.plots.faithfulness import faithfulness
from attrib.plots.gate import gate_auc, gate_similarity, gate_tokens
from attrib.plots.heatmap_png import heatmap_colors, heatmap_png
from attrib.plots.heatmaps import heatmap_by_layer, heatmap_pictures
from attrib.plots.layer_evidence import layer_evidence, layer_scores, mark_layers
from attrib.plots.learning import learning
from attrib.plots.overlay import overlay, query_bars
from attrib.plots.patching import patching, patching_difference
from attrib.plots.selection import selection
from attrib.plots.sensitivity import sensitivity

__all__ = [
    "attention",
    "contributions",
    "describe",
    "faithfulness",
    "gate_auc",
    "gate_similarity",
    "gate_tokens",
    "heatmap_by_layer",
    "heatmap_colors",
    "heatmap_pictures",
    "heatmap_png",
    "layer_evidence",
    "layer_scores",
    "learning",
    "mark_layers",
    "new_axes",
    "overlay",
    "patching",
    "patching_difference",
    "query_bars",
    "save",
    "selection",
    "sensitivity",
    "share_scale",
    "svg",
]
