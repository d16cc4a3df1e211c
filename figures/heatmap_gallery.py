"""Heatmaps of sample images, and how often they point at the object asked about."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from figures.frames import integers, pivot_wide, select_rows
from figures.measure import collect_tables
from figures.scene_objects import SIDES, ground_truths_of

if TYPE_CHECKING:
    from attrib.analyses.heatmaps import Perturbation
    from attrib.data import EditData, EditSample
    from attrib.data.scenes.ground_truth import GroundTruth
    from attrib.model.vlm import VLM

# Two kinds of noise: that of the paper, and a small one that keeps a token recognisable.
NOISES = {"paper": "noise of 3 std (the paper)", "little": "noise of 0.1 std"}
DRAWS = 4  # of the paper's noise; a single draw varies too much
ANSWER_TOKENS = 8  # the embedded answers have at most four


def perturbations(seed: int) -> "dict[str, Perturbation]":
    """Return the perturbation of each name in `NOISES`."""
    from attrib.analyses.heatmaps import Perturbation

    return {
        "paper": Perturbation(noise=3.0, draws=DRAWS, seed=seed),
        "little": Perturbation(noise=0.1, seed=seed),
    }


def pointing_rates(vlm: "VLM", data: "EditData", seed: int) -> pd.DataFrame | None:
    """Return how often the hottest cell lies on the object asked about, and the chance level.

    Columns: example, layer, chance and one per name in `NOISES`; only questions about one object.
    None if the data have no ground truth.
    """
    from attrib.analyses.pointing_game import measure_faithfulness

    if not (truths := ground_truths_of(data)):
        return None
    run = partial(measure_faithfulness, truths=truths, how=perturbations(seed))
    table = collect_tables(vlm, data, run)["faithfulness"]
    chance = select_rows(table, statistic="chance", method=next(iter(NOISES)))
    hits = [select_rows(table, statistic="hit", method=name) for name in NOISES]
    both = pd.concat([chance.assign(method="chance"), *hits])
    return pivot_wide(both, "method", ("example", "layer")).dropna(ignore_index=True)


def balanced_samples(data: "EditData", number: int, per_kind: int) -> "EditData":
    """Return the first samples about one object, at most `per_kind` of each kind of question.

    Without ground truth, return the first samples.
    """
    if not (truths := ground_truths_of(data)):
        return data[:number]
    counts: Counter[str] = Counter()
    chosen = []
    for sample in data:
        truth = truths[sample.id]
        if truth.target_object() is not None and counts[truth.question.kind] < per_kind:
            counts[truth.question.kind] += 1
            chosen.append(sample)
    return replace(data, samples=chosen[:number])


def heatmap_tables(
    vlm: "VLM", data: "EditData", layers: Sequence[int], seed: int
) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray]]:
    """Return heatmaps of samples and their images, named T1, T2, ...

    Returns:
        The tables "heat" (example, noise, row, col and a column per layer) and "samples" (example,
        prompt, the model's answer, the box of the grid and, if known, that of the object asked
        about, in pixels); and the images.
    """
    maps = {name: _maps(vlm, data, how, layers) for name, how in perturbations(seed).items()}
    heat = pd.concat([cells.assign(noise=name) for name, (cells, _) in maps.items()])
    _, grids = next(iter(maps.values()))
    truths = ground_truths_of(data)
    samples = pd.DataFrame(
        [
            _answer(vlm, sample)
            | _boxes(select_rows(grids, example=sample.id), truths.get(sample.id))
            for sample in data
        ]
    )
    labels = {sample.id: f"T{i + 1}" for i, sample in enumerate(data)}
    images = {labels[sample.id]: np.asarray(sample.request.image) for sample in data}
    tables = {"heat": heat, "samples": samples}
    return {
        name: table.assign(example=[labels[str(one)] for one in table["example"]])
        for name, table in tables.items()
    }, images


def _maps(
    vlm: "VLM", data: "EditData", how: "Perturbation", layers: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return heat (example, row, col, a column per layer) and the boxes of the grids.

    With a Q-Former, the heat of queries is distributed over patches.
    """
    from attrib.analyses.heatmaps import measure_heatmaps

    tables = collect_tables(vlm, data, partial(measure_heatmaps, how=how, layers=layers))
    cells = tables.get("picture", tables["heatmap"])
    on_grid = cells.loc[integers(cells, "row") >= 0]
    return pivot_wide(on_grid, "layer", ("example", "row", "col")), tables["grids"]


def _answer(vlm: "VLM", sample: "EditSample") -> dict[str, Any]:
    request = sample.request
    batch = vlm.encode([request.image], [request.prompt])
    answer = vlm.generate(batch, max_new_tokens=ANSWER_TOKENS)[0].strip()
    return {"example": sample.id, "prompt": request.prompt, "answer": answer}


def _boxes(grid: pd.DataFrame, truth: "GroundTruth | None") -> dict[str, float]:
    """Return the boxes of the grid and of the object asked about in pixels; NaN if unknown."""
    boxes = {f"grid_{side}": float(np.asarray(grid[side])[0]) for side in SIDES}
    target = None if truth is None else truth.target_object()
    if truth is None or target is None:
        return boxes | dict.fromkeys(SIDES, np.nan)
    rows, cols = np.nonzero(truth.masks()[target])
    ends = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    return boxes | {side: float(end) for side, end in zip(SIDES, ends, strict=True)}
