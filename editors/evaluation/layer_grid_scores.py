"""Scores of a grid's cells, with and without a gate, and the grid's tables.

Which inputs open a gate does not depend on the adapters, so it is computed once for all cells: an
input that does not open it gets the unedited model's answer.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from attrib.files import read_json, write_text
from editors.evaluation.layer_grid_gate import Opened
from editors.evaluation.metrics import means
from editors.evaluation.protocols import METRIC_OF, Answer, judge
from editors.gating.gates import NO_GATE
from editors.methods.adapter_objective import AdapterObjective
from editors.training.dataset import CachedDataset
from editors.training.losses import ROLES

CELL = "cell.json"  # record of a finished cell, in its folder
ALL_HARD = "hard"  # metric of the hard locality inputs of all types
HELD_OUT = "held_out"  # in identities; cells of earlier versions were validated on test edits
Scores = dict[str, dict[str, float]]


@torch.no_grad()
def cell_scores(
    objective: AdapterObjective, test: CachedDataset, gates: Mapping[str, Opened]
) -> Scores:
    """Score a cell by the protocol "paper".

    Args:
        objective: The objective with the cell's adapters.
        test: The edits.
        gates: Which inputs open each gate, by its name; see `GridGate.open_inputs`.

    Returns:
        Mean over edits, from 0 to 1, by gate ("none" among them) and metric; "avg" is the mean of
        the papers' five.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (NO_GATE, *gates)}
    for item in range(len(test)):
        answers = _answers(objective, test, item)
        for name, values in found.items():
            own: dict[str, list[float]] = {}
            for role, number, before, after in answers:
                is_open = name == NO_GATE or gates[name][item][role][number]
                metric = METRIC_OF.get(role, ALL_HARD)
                score = judge("paper", metric, before, after if is_open else before)
                own.setdefault(metric, []).append(score)
            for metric, scores in own.items():
                values.setdefault(metric, []).append(sum(scores) / len(scores))
    return {name: means(values) for name, values in found.items()}


def cell_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per cell, gate and metric, from the records of cells: see `layer_grid.grid`."""
    return pd.DataFrame(
        {**record["cell"], "gate": gate, "metric": metric, "value": value}
        for record in records
        for gate, scores in record["scores"].items()
        for metric, value in scores.items()
    )


def finished_cells(out: Path, like: Path) -> list[dict[str, Any]]:
    """Records of all cells in a grid's folder that were trained and scored as that of `like`."""
    identity = read_json(like / CELL)["identity"]
    records = [read_json(path) for path in sorted(out.glob(f"*/{CELL}"), key=_by_layers)]
    return [record for record in records if record["identity"] == identity]


def conditions(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a cell was trained and scored: the fields of `grid.json`."""
    identity = record["identity"]
    held_out = identity.get(HELD_OUT, 0)
    return {
        "editor": identity["editor"],
        "model": identity["model"],
        "training": identity["training"],
        "train_edits": len(identity["samples"]) - held_out,
        **({HELD_OUT: held_out} if held_out else {}),
        "test_edits": len(identity["test"]),
    }


def _by_layers(path: Path) -> list[tuple[int, str]]:
    words = path.parent.name.replace("-", " ").split()
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def save_grid(frame: pd.DataFrame, gate: str, out: Path) -> list[Path]:
    """Write `grid.csv`, and `scores.csv`, by which layer selection is evaluated."""
    judged = (frame["metric"] == "avg") & (frame["gate"] == gate)
    scores = frame.loc[judged, ["text", "visual", "seed", "value"]]
    names = ["text", "visual", "seed", "score"]
    return [
        write_text(out / "grid.csv", frame.to_csv(index=False)),
        write_text(out / "scores.csv", scores.to_csv(index=False, header=names)),
    ]


def grid_text(frame: pd.DataFrame) -> str:
    """Means over seeds per cell and gate in per cent, a column per metric, as text."""
    shown: Any = frame.assign(
        **{m: frame[m].astype(object).where(frame[m].notna(), "-") for m in ("text", "visual")}
    )
    table = shown.pivot_table("value", ["gate", "text", "visual"], "metric", "mean", sort=False)
    return (100 * table).round(1).to_string()


def _answers(
    objective: AdapterObjective, test: CachedDataset, item: int
) -> list[tuple[str, int, Answer, Answer]]:
    """Return role, number in its role, unedited and edited answer of each input of an edit."""
    rows = test.rows([item], ROLES)
    roles = [ROLES[role] for role in rows.role_of.tolist()]
    numbers = [roles[:i].count(role) for i, role in enumerate(roles)]
    has_image = [bool(one.spans["visual"].any()) for one in rows.inputs]
    order = sorted(range(len(roles)), key=lambda i: not has_image[i])  # as the objective's tokens
    sizes = [rows.inputs[i].num_asked for i in order]
    tokens = objective.tokens(test, [item], ROLES)
    parts = (tokens["labels"], tokens["clean"].argmax(-1), tokens["logits"].argmax(-1))
    found = []
    for i, gold, before, after in zip(order, *(part.split(sizes) for part in parts), strict=True):
        answers = [Answer("", gold, forced) for forced in (before, after)]
        found.append((roles[i], numbers[i], *answers))
    return found
