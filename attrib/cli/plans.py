"""Plans of trainings, grids and tables, for `--dry-run`: what would be done, and what is done."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.outputs import model_size

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from editors.evaluation.editor_table import Job
    from editors.evaluation.layer_grid import Cell


def training_plan(
    kind: Any, where: str, config: Any, vlm: "VLM", data: "EditData", out: Path
) -> list[str]:
    """The plan of a training, line by line.

    Args:
        kind: The editor's class.
        where: Its layers, as text.
        config: Its options.
        vlm: The model.
        data: The edits to train on.
        out: The folder.
    """
    from editors.io import SETTINGS
    from editors.training.trainer import LAST

    steps = getattr(config, "steps", 0) if kind.is_trained else 0
    there = "finished" if (out / SETTINGS).exists() else "none"
    there = "it goes on from its last checkpoint" if (out / LAST).exists() else there
    return [
        "dry run of train: nothing is written",
        f"  editor: {kind.name}{where}; {steps:,} steps",
        f"  data: {data.summary()}",
        f"  model: {model_size(vlm)}",
        f"  there already: {there}",
        f"  results: {out}",
    ]


def grid_plan(
    wanted: "Sequence[Cell]",
    parts: "tuple[EditData, EditData]",
    settings: tuple[int, str],
    vlm: "VLM",
    out: Path,
) -> list[str]:
    """The plan of a grid, line by line.

    Args:
        wanted: The cells.
        parts: The edits to train on and to score on.
        settings: Steps of a training, and the gate.
        vlm: The model.
        out: The folder.
    """
    from editors.evaluation.layer_grid import CELL

    (train, test), (steps, gate) = parts, settings
    done = sum((out / cell.name / CELL).exists() for cell in wanted)
    return [
        "dry run of grid: nothing is written",
        f"  trainings: {len(wanted)} of {steps:,} steps, {done} of them done",
        f"  cells: {', '.join(cell.name for cell in wanted)}",
        f"  data: {len(train)} edits to train on, {len(test)} to score on; gate {gate}",
        f"  model: {model_size(vlm)}",
        f"  results: {out}",
    ]


def table_plan(jobs: "list[Job]", missing: "list[Job]", options: Any) -> list[str]:
    """The plan of a table, line by line; models and data are not loaded for it."""
    from editors.io import SETTINGS

    lines = [f"dry run of table: nothing is written, {len(missing)} of {len(jobs)} are missing"]
    for job in jobs:
        trained = (job.folder(options.out) / SETTINGS).exists()
        left = "to be scored" if trained else "to be trained and scored"
        lines.append(f"  {job}: {left if job in missing else 'done'}")
    gate = "without a gate" if options.gate == "none" else f"and behind {options.gate}"
    lines.append(f"  scores: {options.limit} edits each, as they are {gate}, {options.protocols}")
    return [*lines, f"  results: {options.out}"]
