"""The analyses as tables over samples: one forward pass per batch, whatever is asked of it."""

from attrib.analyses.faithfulness_table import measure_faithfulness
from attrib.analyses.first_table import (
    measure_attention,
    measure_contributions,
    measure_first_report,
)
from attrib.analyses.gate_table import measure_gate
from attrib.analyses.heatmaps_table import measure_heatmaps
from attrib.analyses.patching_table import measure_patching
from attrib.analyses.sensitivity_table import measure_sensitivity

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
