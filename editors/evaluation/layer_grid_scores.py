"""Scores of a cell of the grid: what it gets right, as it is and behind a gate.

What a gate opens for does not depend on the adapters, so it is asked once for all cells: an input
that it does not open for gets the unedited model's answer.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate
from editors.gating.gates import NO_GATE
from editors.gating.inputs import related_inputs
from editors.gating.threshold import gate_scores
from editors.methods.adapter_objective import AdapterObjective
from editors.prefix.cached_dataset import CachedDataset
from editors.training.losses import LOCALITY, ROLES

METRICS = {
    "request": "rel", "text_generality": "t_gen", "visual_generality": "v_gen",
    "text_locality": "t_loc", "visual_locality": "m_loc", "hard_locality": "hard",
}  # fmt: skip
AVERAGED = ("rel", "t_gen", "v_gen", "t_loc", "m_loc")
Opened = Sequence[Mapping[str, Sequence[bool]]]
Scores = dict[str, dict[str, float]]


def opened(vlm: VLM, samples: Sequence[EditSample], gate: Gate) -> list[dict[str, list[bool]]]:
    """For each sample, by role, which of its inputs the gate opens for; teacher-forced inputs."""
    values = gate_scores(vlm, samples, gate)["value"]
    found: list[dict[str, list[bool]]] = [{} for _ in samples]
    for one, value in zip(related_inputs(samples), values, strict=True):
        role = one.relation if one.relation in ROLES else "hard_locality"
        found[one.row].setdefault(role, []).append(bool(value >= gate.threshold))
    return found


@torch.no_grad()
def cell_scores(
    objective: AdapterObjective, test: CachedDataset, gates: Mapping[str, Opened]
) -> Scores:
    """By gate ("none" among them) and metric the mean over edits of the share of right tokens.

    Args:
        objective: Has the adapters.
        test: The edits.
        gates: By name, what each gate opens for; see `opened`.

    Returns:
        From 0 to 1, teacher-forced; "avg" is the mean of the papers' five.
    """
    found: dict[str, dict[str, list[float]]] = {NO_GATE: {}, **{name: {} for name in gates}}
    for item in range(len(test)):
        tokens = objective.tokens(test, [item], ROLES)
        now, before = tokens["logits"].argmax(-1), tokens["clean"].argmax(-1)
        for index, role in enumerate(ROLES):
            at = tokens["roles"] == index
            if not bool(at.any()):
                continue
            wanted = before[at] if role in LOCALITY else tokens["labels"][at]
            edited, unedited = now[at] == wanted, before[at] == wanted
            for name, values in found.items():
                right = edited
                if name in gates:
                    served = _served(test, item, role, gates[name][item][role]).to(edited.device)
                    right = torch.where(served, edited, unedited)
                values.setdefault(METRICS[role], []).append(right.float().mean().item())
    return {name: _means(values) for name, values in found.items()}


def _served(
    test: CachedDataset, item: int, role: str, opens: Sequence[bool]
) -> Bool[Tensor, " token"]:
    """Per answer token of an edit's inputs of a role, in the order of the objective's tokens."""
    queries = test.rows([item], [role]).inputs
    has_image = [bool(query.spans["visual"].any()) for query in queries]
    order = sorted(range(len(queries)), key=lambda i: not has_image[i])  # these come first
    return torch.tensor([opens[i] for i in order for _ in range(len(queries[i].final))])


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    means = {name: float(np.mean(some)) for name, some in values.items()}
    return means | {"avg": float(np.mean([means[name] for name in AVERAGED]))}
