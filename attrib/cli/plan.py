"""What `--dry-run` prints: the work of a run, without doing it."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from attrib.pipeline.units import show_bytes

if TYPE_CHECKING:
    from attrib.model.vlm import VLM
    from attrib.runs import Run


def plan_lines(run: "Run", batch_size: int, more: Iterable[str] = ()) -> Iterator[str]:
    """The plan of a run, line by line; `more` are lines of its analysis, such as the cost."""
    done = {shard.key for shard in run.committed()}
    left = [len(shard.samples) for shard in run.shards if shard.key not in done]
    passes = sum(math.ceil(samples / batch_size) for samples in left)
    yield f"dry run of {run.manifest['command']}: nothing is written"
    yield f"  data: {run.data.name} {run.data.split}".rstrip()
    yield f"  rows: {len(run.data)} usable, {len(run.data.quarantined)} quarantined"
    yield f"  shards: {len(run.shards)}, {len(done)} of them done"
    yield f"  batch size: {batch_size}; passes left: {passes}, over {run.rank.world} process(es)"
    yield f"  model: {model_size(run.vlm)}"
    yield from (f"  {line}" for line in more)
    yield f"  results: {run.out}"


def model_size(vlm: "VLM") -> str:
    """Parameters, bytes, dtype and device of a model."""
    weights: list[Any] = list(vlm.model.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    count = sum(weight.numel() for weight in weights)
    return f"{vlm.name}, {count:,} parameters, {show_bytes(size)}, {dtype} on {vlm.device}"
