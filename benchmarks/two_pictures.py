"""Does the picture that a question is about get the heat, if the prompt has two pictures?

    python -m benchmarks.two_pictures                 # tiny-llava, 32 pairs, a minute on a CPU

Each question is about a shape that is in one of its two scenes only. It is asked with that scene
first and with it second, so that a preference for a position cancels: chance is one half. The
embedded models were trained on one picture per prompt. Per layer and method: the mean share of the
heat on the picture asked about (`share`), how often it has more than half (`hit`), and how often
the hottest cell of both pictures lies on the object (`object`, by chance the object's share of the
cells). Writes `benchmarks/results/two-pictures.json`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

import attrib
from attrib.analyses.pointing_game import masks_to_grid
from attrib.analyses.visual_tokens import VisualTokens
from attrib.data import EditSample
from attrib.data.scenes.ground_truth import GroundTruth, ground_truths
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, save

LITTLE, PAPER = 0.1, 3.0  # noise, in standard deviations


class Pair(NamedTuple):
    """A question about a scene, and another scene without the shape that it names."""

    sample: EditSample
    other: EditSample
    truth: GroundTruth


def pairs_of(
    samples: Sequence[EditSample], truths: Mapping[str, GroundTruth], number: int
) -> list[Pair]:
    """The first questions that name a shape of their own scene alone, each with such a scene."""
    found: list[Pair] = []
    for i, sample in enumerate(samples):
        truth = truths[sample.id]
        shape = dict(truth.question.slots).get("shape")
        target = truth.question.target
        if target is None or target.shape != shape or len(found) == number:
            continue
        rest = [*samples[i + 1 :], *samples[:i]]
        without = (s for s in rest if all(o.shape != shape for o in truths[s.id].scene.objects))
        if (other := next(without, None)) is not None:
            found.append(Pair(sample, other, truth))
    return found


def shares(
    values: Float[np.ndarray, "layer visual"], batch: Batch, row: int
) -> Float[np.ndarray, "layer picture"]:
    """The share of each picture of a prompt in the sum of a map; they sum to 1."""
    sums = np.stack([values[:, own.tokens].sum(-1) for own in batch.pictures[row]], -1)
    return sums / sums.sum(-1, keepdims=True)


def on_object(truth: GroundTruth, batch: Batch, row: int, at: int) -> Bool[np.ndarray, " visual"]:
    """Which visual tokens of a prompt lie on the object asked about."""
    grid, target = batch.pictures[row][at].grid, truth.target_object()
    assert grid is not None and target is not None
    cells = np.zeros(batch.pictures[row][-1].tokens.stop, bool)
    cells[grid.first :][: grid.rows * grid.cols] = masks_to_grid(truth.masks(), grid)[target]
    return cells


@torch.no_grad()
def measure(vlm: VLM, pairs: Sequence[Pair], at: int) -> list[dict[str, Any]]:
    """Rows of every question, with the scene asked about at position `at` of two."""
    images = [[p.sample.request.images[0], p.other.request.images[0]] for p in pairs]
    prompts = [p.sample.request.prompt for p in pairs]
    batch = vlm.encode([own[:: 1 - 2 * at] for own in images], prompts)
    batch = batch.named([p.sample.id for p in pairs])
    attended = attrib.attention(vlm, batch).transpose(1, 2)
    maps = {
        "heatmap, noise 0.1": attrib.heatmaps(vlm, batch, noise=LITTLE),
        "heatmap, noise 3": attrib.heatmaps(vlm, batch, noise=PAPER),
        "attention": VisualTokens.of(batch).gather(attended).transpose(1, 2),
    }
    logits, rows = vlm.last_logits(batch), []
    alone = vlm.last_logits(vlm.encode([own[0] for own in images], prompts))
    for row, pair in enumerate(pairs):
        answer = vlm.answer_token(pair.truth.answer)
        right = [int(one[row].argmax()) == answer for one in (alone, logits)]
        target = on_object(pair.truth, batch, row, at)
        for method, values in maps.items():
            own = values[row, :, : len(target)].double().cpu().numpy()
            share, hottest = shares(own, batch, row)[:, at], target[own.argmax(-1)]
            rows += [
                {"example": pair.sample.id, "at": at, "method": method, "layer": layer,
                 "share": share[layer], "hit": share[layer] > 0.5, "object": hottest[layer],
                 "chance": target.mean(), "right alone": right[0], "right": right[1]}
                for layer in range(vlm.num_layers)
            ]  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_pictures")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS / "two-pictures.json")
    options = parser.parse_args(arguments)
    vlm = attrib.load(options.model, verify=False)
    data = attrib.data.load("scenes-vqa", split="test", limit=8 * options.pairs)
    pairs = pairs_of(list(data), ground_truths(data), options.pairs)
    table = pd.DataFrame([row for at in (0, 1) for row in measure(vlm, pairs, at)])
    wanted = ["share", "hit", "object", "chance", "right alone", "right"]
    means = table.groupby(["method", "layer"], sort=False)[wanted].mean().round(3).reset_index()
    each = table.groupby(["method", "layer", "at"], sort=False)[wanted].mean().round(3)
    print(means.to_string(), each.to_string(), sep="\n\n")
    rows = {"rows": means.to_dict("records"), "by order": each.reset_index().to_dict("records")}
    save(options.out, {"model": options.model, "pairs": len(pairs), "orders": 2}, rows)


if __name__ == "__main__":
    main()
