"""Which layers to edit: rules over the curves of the analyses, and the regret of their choices.

An edit at layer l writes the output of layer l, which layers l + 1 and up read. A rule therefore
scores layer l by what happens in layer l + 1 if its curve is about what a layer reads or writes,
and by what happens at l if the curve was measured by writing there. The last layer has no score:
nothing reads its output except at the last prompt token.
"""

from attrib.selection.evaluate import (
    GridEvaluation,
    evaluate_on_grid,
    fixed_picks,
    picks_of,
    rank_correlations,
    regret,
)
from attrib.selection.evidence import Evidence, evidence_table, gather
from attrib.selection.report import Choice, LayerReport
from attrib.selection.rules import CONSENSUS_RULES, RULES
from attrib.selection.select import combine_words, select_layers

__all__ = [
    "CONSENSUS_RULES",
    "RULES",
    "Choice",
    "Evidence",
    "GridEvaluation",
    "LayerReport",
    "combine_words",
    "evaluate_on_grid",
    "evidence_table",
    "fixed_picks",
    "gather",
    "picks_of",
    "rank_correlations",
    "regret",
    "select_layers",
]
