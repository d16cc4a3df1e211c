"""An analysis over a dataset: resumable runs in a folder, shard by shard."""

from attrib.runs.collect import Collector
from attrib.runs.collected import Collected, Measure, Tables
from attrib.runs.distributed import Rank
from attrib.runs.manifest import NON_IDENTIFYING, refuse_foreign
from attrib.runs.run import Outcome, Run, prepare, samples_per_pass
from attrib.runs.shards import ROWS, Shard, ShardResult, ShardStore, split

__all__ = [
    "NON_IDENTIFYING",
    "ROWS",
    "Collected",
    "Collector",
    "Measure",
    "Outcome",
    "Rank",
    "Run",
    "Shard",
    "ShardResult",
    "ShardStore",
    "Tables",
    "prepare",
    "refuse_foreign",
    "samples_per_pass",
    "split",
]
