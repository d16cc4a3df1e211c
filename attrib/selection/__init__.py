"""Which layers to edit: rules over the curves of the analyses, and how well a rule did.

An edit "at layer l" writes the output of layer l, which layers l + 1 and up read. A rule therefore
gives layer l the score that its curves have for being written there: what happens in layer l + 1
where a curve is about what a layer reads or writes, what happens at l where the curve itself came
from writing there. The last layer has no score: nothing reads what it puts out before the last
prompt token.
"""

from attrib.selection.evaluate import (
    fixed_picks,
    picks_of,
    rank_correlations,
    regret,
)
from attrib.selection.evidence import Evidence, evidence_table, gather
from attrib.selection.multi_token import combine_words, summarize_words
from attrib.selection.report import Choice, LayerReport
from attrib.selection.rules import CONSENSUS_RULES, MODALITIES, RULES, Modality, RuleName
from attrib.selection.select import select_layers

__all__ = [
    "CONSENSUS_RULES",
    "MODALITIES",
    "RULES",
    "Choice",
    "Evidence",
    "LayerReport",
    "Modality",
    "RuleName",
    "combine_words",
    "evidence_table",
    "fixed_picks",
    "gather",
    "picks_of",
    "rank_correlations",
    "regret",
    "select_layers",
    "summarize_words",
]
