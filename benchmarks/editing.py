"""What training adapters and evaluating edits cost.

    python -m benchmarks.editing

Steps from cached prefixes, against running the whole model in every step: both do the same step on
the same edits of scenes-vqa (the losses are compared first). The plain step runs images, prompts
and all layers with hooks, on inputs that were tokenised before. Then training and evaluation
against an older commit of this repository (`benchmarks.older_tree`), which needs its history.
Prints ratios measured in one run, and writes them to `benchmarks/results/editing-cpu.json`.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import attrib
from attrib.data.samples import EditSample
from attrib.forward.hooks import write
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, compare, ratio, save
from benchmarks.older_tree import COMMIT, against_older
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.training.dataset import CachedDataset, cache_dataset, requests_of
from editors.training.losses import ROLES, answer_losses
from editors.training.prefix import EMBED

EDITS = 16


@dataclass(frozen=True, eq=False)
class Step:
    """One training step on all edits, done both ways."""

    vlm: VLM
    objective: AdapterObjective
    batch: Batch

    @classmethod
    def at(cls, vlm: VLM, samples: list[EditSample], text: int, visual: int) -> "Step":
        """The step of adapters at two layers."""
        config = AdapterConfig.from_preset(vlm, "embedded")
        sites = config.build(vlm, {"text": [text], "visual": [visual]}, seed=0)
        first = min(text, visual)
        needed = [EMBED, text, visual]
        data: CachedDataset = cache_dataset(
            vlm, samples, first=[first], signals=needed, compared=ROLES
        )
        objective = AdapterObjective(vlm, data, data, config, sites)
        asked = [r for s in samples for role in objective.roles for r in requests_of(s, role)]
        batch = vlm.encode(
            [r.image for r in asked],
            [r.prompt for r in asked],
            [r.target for r in asked],
            padding_side="right",
        )
        return cls(vlm, objective, batch)

    def cached(self) -> Tensor:
        """Compute the loss from cached prefixes, and its gradients."""
        losses = self.objective.losses(range(EDITS), np.random.default_rng(0))
        return self._back(losses)

    def plain(self) -> Tensor:
        """Compute the loss by running the whole model, and its gradients."""
        o, batch = self.objective, self.batch
        data: Any = o.data
        rows = data.rows(range(EDITS), o.roles)
        assert batch.labels is not None
        asked = batch.labels != IGNORE_INDEX
        with ExitStack() as stack:
            for site in o.sites:
                signals = o.signals(site, data.edits).rows(rows.edit_of)
                at = site.positions(batch.spans)
                move = partial(site.adapter, edit=signals)
                stack.enter_context(write(self.vlm, site.layer, move, at))
            logits = self.vlm.logits(batch)[asked]
        clean = self.vlm.unembed(torch.cat([q.final for q in rows.inputs])).detach()
        roles = rows.role_of[:, None].expand_as(batch.labels)[asked]
        return self._back(answer_losses(logits, clean, batch.labels[asked], roles, o.weights))

    def _back(self, losses: dict[str, Tensor]) -> Tensor:
        self.objective.module.zero_grad()
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        return loss.detach()


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """A row per pair of layers of the adapters."""
    vlm = attrib.load(name)
    samples = list(attrib.data.load("scenes-vqa", split="train", limit=EDITS))
    rows = []
    for text, visual in ((1, 1), (4, 4), (6, 6), (8, 8)):
        step = Step.at(vlm, samples, text, visual)
        losses = step.plain().item(), step.cached().item()
        if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0]):
            raise AssertionError(f"the losses differ at layers {text}, {visual}: {losses}")
        timed = compare({"plain": step.plain, "cached": step.cached}, rounds, "cpu")
        rows.append(
            {
                "text": text,
                "visual": visual,
                **ratio(timed["plain"], timed["cached"]),
                "plain steps/s": 1 / timed["plain"].median,
                "cached steps/s": 1 / timed["cached"].median,
                "plain peak MiB": timed["plain"].peak_bytes / 2**20,
                "cached peak MiB": timed["cached"].peak_bytes / 2**20,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.editing", description=__doc__)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commit", default=COMMIT, help="the older tree; '' for none")
    parser.add_argument("--edits", type=int, default=100, help="that are evaluated")
    parser.add_argument("--out", type=Path, default=RESULTS / "editing-cpu.json")
    options = parser.parse_args(arguments)
    tables: dict[str, Any] = {"rows": measure(options.model, options.rounds)}
    if options.commit:
        tables |= against_older(options.commit, options.rounds, options.edits)
    for row in (row for rows in tables.values() for row in rows):
        shown = {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()}
        sys.stdout.write(" ".join(f"{k} {v}" for k, v in shown.items()) + "\n")
    head = {
        "threads": torch.get_num_threads(), "model": options.model,
        "edits in a step": EDITS, "rounds": options.rounds, "older commit": options.commit,
    }  # fmt: skip
    save(options.out, head, tables)


if __name__ == "__main__":
    main()
