"""Runs: an analysis over a dataset, in a folder, that survives whatever stops it."""

from attrib.runs.distributed import Rank
from attrib.runs.manifest import ALWAYS_FREE, refuse_foreign
from attrib.runs.run import Outcome, Run, prepare
from attrib.runs.shards import Part, Parts
from attrib.runs.units import ROWS, Unit, split

__all__ = [
    "ALWAYS_FREE",
    "ROWS",
    "Outcome",
    "Part",
    "Parts",
    "Rank",
    "Run",
    "Unit",
    "prepare",
    "refuse_foreign",
    "split",
]
