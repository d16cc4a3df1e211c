"""The analyses as tables over samples: one forward pass per batch, whatever is asked of it."""

from attrib.measures.faithfulness import measure_faithfulness
from attrib.measures.first import (
    measure_attention,
    measure_contributions,
    measure_first_report,
)
from attrib.measures.gate import measure_gate
from attrib.measures.heatmaps import measure_heatmaps
from attrib.measures.patching import measure_patching
from attrib.measures.sensitivity import measure_sensitivity

__all__ = [
    "measure_attention",
    "measure_contributions",
    "measure_faithfulness",
    "measure_first_report",
    "measure_gate",
    "measure_heatmaps",
    "measure_patching",
    "measure_sensitivity",
]
