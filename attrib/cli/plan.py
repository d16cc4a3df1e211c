"""What `--dry-run` prints: the work that a run would do, without doing it."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.runs import Run

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def planned(
    run: "Run",
    batch_size: int,
    more: "Callable[[VLM, EditData], Iterable[str]] | None" = None,
) -> list[str]:
    """The plan of a run, a line each; `more` adds what only its command knows."""
    there = {unit.key for unit in run.committed()}
    passes = sum(
        math.ceil(len(unit.samples) / batch_size) for unit in run.units if unit.key not in there
    )
    usable, bad = len(run.data), len(run.data.quarantined)
    return [
        f"dry run of {run.manifest['command']}: nothing is written",
        f"  data: {run.data.name} {run.data.split}".rstrip(),
        f"  rows: {usable} usable, {bad} quarantined",
        f"  units: {len(run.units)}, {len(there)} of them done",
        f"  batch size: {batch_size}; passes left: {passes}, over {run.rank.world} process(es)",
        f"  model: {model_size(run.vlm)}",
        *(f"  {line}" for line in (more(run.vlm, run.data) if more else ())),
        f"  results: {run.out}",
    ]


def model_size(vlm: "VLM") -> str:
    """How large a model is and where it runs, in words."""
    weights = list(vlm.model.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    count = sum(weight.numel() for weight in weights)
    return f"{vlm.name}, {count:,} parameters, {shown_bytes(size)}, {dtype} on {vlm.device}"


def shown_bytes(size: int) -> str:
    """A number of bytes for people: "13.2 MiB"."""
    power = min(int(math.log(size, 1024)), len(UNITS) - 1) if size >= 1 else 0
    return f"{size / 1024**power:.4g} {UNITS[power]}"
