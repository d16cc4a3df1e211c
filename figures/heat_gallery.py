"""Heatmaps of sample images and how well they point, measured: what two of the figures share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from attrib.errors import AttribError
from figures.measuring import integers, tables_of, wide
from figures.rows import where

if TYPE_CHECKING:
    from attrib.analyses.heatmaps import Perturbation
    from attrib.data import EditData, EditSample
    from attrib.data.scenes.ground_truth import GroundTruth
    from attrib.model.vlm import VLM

SIDES = ("left", "top", "right", "bottom")
# How heatmaps are made: as the paper says, and with noise that leaves a token what it was.
NAMES = {"paper": "noise of 3 std (the paper)", "little": "noise of 0.1 std"}
DRAWS = 4  # of the large noise, which one draw says little about
LONGEST_ANSWER = 8  # tokens; the embedded answers have at most four


def perturbations(seed: int) -> "dict[str, Perturbation]":
    """By the names of `NAMES`."""
    from attrib.analyses.heatmaps import Perturbation

    return {
        "paper": Perturbation(noise=3.0, draws=DRAWS, seed=seed),
        "little": Perturbation(noise=0.1, seed=seed),
    }


def truths_of(data: "EditData") -> "Mapping[str, GroundTruth] | None":
    """The ground truth of each sample; None where the data have none."""
    from attrib.data.scenes.ground_truth import ground_truths

    try:
        return ground_truths(data)
    except AttribError:
        return None


def pointing(vlm: "VLM", data: "EditData", seed: int) -> pd.DataFrame | None:
    """How often the hottest cell lies on the object asked about, and how often by chance.

    Columns: example, layer, chance and one per name of `NAMES`; only questions about one object.
    None where the truth is not known.
    """
    from attrib.analyses.tables import measure_faithfulness

    truths = truths_of(data)
    if truths is None:
        return None
    run = partial(measure_faithfulness, truths=truths, how=perturbations(seed))
    table = tables_of(vlm, data, run)["faithfulness"]
    chance = where(table, statistic="chance", method=next(iter(NAMES)))
    hits = [where(table, statistic="hit", method=name) for name in NAMES]
    found = pd.concat([chance.assign(method="chance"), *hits])
    return wide(found, "method", ("example", "layer")).dropna(ignore_index=True)


def of_each_kind(data: "EditData", number: int, per_kind: int) -> "EditData":
    """The first samples whose question is about one object, at most so many of a kind.

    Without known truth, the first samples.
    """
    truths = truths_of(data)
    if truths is None:
        return data[:number]
    counts: Counter[str] = Counter()
    chosen = []
    for sample in data:
        truth = truths[sample.id]
        if truth.target_object() is not None and counts[truth.question.kind] < per_kind:
            counts[truth.question.kind] += 1
            chosen.append(sample)
    return replace(data, samples=chosen[:number])


def gallery(
    vlm: "VLM", data: "EditData", layers: Sequence[int], seed: int
) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray]]:
    """Heatmaps of samples, and their images by the names T1, T2, ...

    Returns:
        The tables "heat" (example, name of the perturbation, row, col and a column per layer),
        and "samples" (example, prompt, answer of the model, the box of the cells and, where it is
        known, the box of the object asked about in pixels); the images.
    """
    found = {name: _maps(vlm, data, how, layers) for name, how in perturbations(seed).items()}
    heat = pd.concat([maps.assign(noise=name) for name, (maps, _) in found.items()])
    _, grids = found[next(iter(found))]
    truths = truths_of(data) or {}
    labels = {sample.id: f"T{i + 1}" for i, sample in enumerate(data)}
    samples = pd.DataFrame(
        [
            _said(vlm, sample) | _boxes(where(grids, example=sample.id), truths.get(sample.id))
            for sample in data
        ]
    )
    images = {labels[sample.id]: np.asarray(sample.request.image) for sample in data}
    tables = {"heat": heat, "samples": samples}
    return {
        name: table.assign(example=[labels[str(one)] for one in table["example"]])
        for name, table in tables.items()
    }, images


def _maps(
    vlm: "VLM", data: "EditData", how: "Perturbation", layers: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Heat (example, row, col, a column per layer) and where the cells lie, for one kind of noise.

    With a Q-Former, the heat of queries handed on to patches.
    """
    from attrib.analyses.tables import measure_heatmaps

    tables = tables_of(vlm, data, partial(measure_heatmaps, how=how, layers=layers))
    cells = tables.get("picture", tables["heatmap"])
    placed = cells.loc[integers(cells, "row") >= 0]
    return wide(placed, "layer", ("example", "row", "col")), tables["grids"]


def _said(vlm: "VLM", sample: "EditSample") -> dict[str, Any]:
    """What a sample asks, and what the model answers."""
    request = sample.request
    batch = vlm.encode([request.image], [request.prompt])
    said = vlm.generate(batch, max_new_tokens=LONGEST_ANSWER)[0].strip()
    return {"example": sample.id, "prompt": request.prompt, "answer": said}


def _boxes(grid: pd.DataFrame, truth: "GroundTruth | None") -> dict[str, float]:
    """In pixels, the box of the cells and that of the object asked about; NaN if not known."""
    boxes = {f"grid_{side}": float(np.asarray(grid[side])[0]) for side in SIDES}
    asked = None if truth is None else truth.target_object()
    if truth is None or asked is None:
        return boxes | dict.fromkeys(SIDES, np.nan)
    rows, cols = np.nonzero(truth.masks()[asked])
    ends = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    return boxes | {side: float(end) for side, end in zip(SIDES, ends, strict=True)}
