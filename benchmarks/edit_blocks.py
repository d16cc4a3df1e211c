"""Scores and costs of edits that are held together, in blocks; see `benchmarks.many_edits`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attrib.data import EditSample
from attrib.forward.up_to import states_up_to
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.stats import clustered_interval
from benchmarks.harness import compare, ratio
from editors.base import Edit, WeightEdit, edit_all
from editors.context import PromptStarts
from editors.evaluation.metrics import FIVE, scores_of
from editors.evaluation.probes import EncodedProbes

PROTOCOL = "paper"
INPUTS = 16  # in a pass
AGES = 4  # groups of equal size, newest first


@dataclass(eq=False)
class Blocks:
    """Edits in consecutive blocks, and a fixed sample of them that is scored.

    Attributes:
        vlm: The model.
        editor: The editor; behind its gate, if it has one.
        samples: All edits, oldest first.
        scored: Indices of the edits that are scored, whatever the size of a block.
        sequential: Whether each edit is made on the model as edited by those before it.
    """

    vlm: VLM
    editor: Any
    samples: Sequence[EditSample]
    scored: Sequence[int]
    sequential: bool = False
    _made: dict[int, Edit] = field(default_factory=dict, repr=False)

    def held(self, start: int, num: int) -> Edit:
        """The edits of a block as one."""
        rows = range(start, min(start + num, len(self.samples)))
        if self.sequential:
            with torch.enable_grad():
                some = [self.samples[row] for row in rows]
                return edit_all(self.vlm, self.editor, some, "sequential")
        first = self._edit(rows[0])
        if isinstance(first, WeightEdit):  # a sum: the block's edits are not kept one by one
            for row in rows[1:]:
                first = self.editor.merge([first, self._edit(row)])
            return first
        return self.editor.merge([self._edit(row) for row in rows])

    def _edit(self, row: int) -> Edit:
        if row in self._made:
            return self._made[row]
        with torch.enable_grad():
            made = self.editor.edit(self.vlm, self.samples[row].request)
        if not isinstance(made, WeightEdit):
            self._made[row] = made
        return made

    def scores(self, num: int) -> list[dict[str, float]]:
        """The scores of every scored edit while its block of `num` is held, with its age."""
        found, current = [], (-1, None)
        for row in self.scored:
            start = row // num * num
            if current[0] != start:
                current = (start, self.held(start, num))
            assert current[1] is not None
            last = min(start + num, len(self.samples)) - 1
            found.append({"row": row, "age": last - row, **self._scores(row, current[1])})
        return found

    @torch.no_grad()
    def _scores(self, row: int, edit: Edit) -> dict[str, float]:
        probes = EncodedProbes.of(self.vlm, self.samples[row], (PROTOCOL,), INPUTS)
        before = probes.answers(self.vlm)
        with edit.applied(self.vlm):
            after = probes.answers(self.vlm)
        return scores_of(PROTOCOL, probes.probes, before, after)


def summaries(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and 95 % interval of each of the five scores."""
    result = {}
    for metric in FIVE:
        values = np.array([one[metric] for one in found])
        low, high = clustered_interval(values, np.arange(len(values)))
        result[metric] = {"mean": float(values.mean()), "low": low, "high": high}
    return result


def by_age(found: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Reliability and generality of the newest quarter of the edits to the oldest."""
    order = sorted(found, key=lambda one: one["age"])
    parts = np.array_split(np.arange(len(order)), min(AGES, len(order)))
    return [
        {
            "youngest": order[part[0]]["age"],
            "oldest": order[part[-1]]["age"],
            **{m: float(np.mean([order[i][m] for i in part])) for m in FIVE[:3]},
        }
        for part in parts
    ]


@torch.no_grad()
def costs(vlm: VLM, edits: Mapping[int, Edit], batch: Batch, rounds: int) -> list[dict[str, Any]]:
    """Bytes, and times of a look-up and of a pass, of edits by their number, in turns.

    Args:
        vlm: The model.
        edits: Edits by how many are held; the fewest are what the others are compared with.
        batch: An input that one of them applies to, the same one in all.
        rounds: Number of rounds.
    """
    looked = {str(n): call for n, e in edits.items() if (call := look_up(vlm, e, batch))}
    timed = compare(looked, 5 * rounds, "cpu") if looked else {}
    passes = compare({str(n): _pass(vlm, e, batch) for n, e in edits.items()}, rounds, "cpu")
    first, rows = str(min(edits)), []
    for num, edit in edits.items():
        index = getattr(getattr(edit, "index", None), "num_bytes", 0)
        row = {"held": num, "bytes": edit.num_bytes, "index bytes": index}
        for what, some in (("look-up", timed), ("pass", passes)):
            if some:
                row[f"{what} ms"] = 1000 * some[str(num)].median
                row[f"{what} ratio"] = ratio(some[str(num)], some[first])
        rows.append(row)
    return rows


def look_up(vlm: VLM, edit: Any, batch: Batch) -> Callable[[], object] | None:
    """A call that decides which edit applies to a batch; None where every edit always does.

    For a gate, from the hidden states that it reads to the decision. For retrieval by text, with
    the pass that encodes the prompt.
    """
    if (gate := getattr(edit, "gate", None)) is not None:
        hidden = states_up_to(vlm, batch, gate.layers)
        return lambda: edit.index.nearest(gate.states(hidden, batch))
    select = getattr(getattr(edit, "prompt", edit), "select", None)
    if select is None:
        return None
    starts = PromptStarts.of(vlm)
    return lambda: select(vlm, batch, starts)


def _pass(vlm: VLM, edit: Edit, batch: Batch) -> Callable[[], object]:
    def run() -> object:
        with edit.applied(vlm):
            return vlm.logits(batch)

    return run
