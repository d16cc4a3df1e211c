"""Insertion and deletion (Petsiuk et al., 2018, RISE): do maps find what the answer depends on?

The cells of the image are replaced by a baseline, those with the largest value of a map first, and
the probability of the model's own answer is read after each step. It falls early if the map is
faithful ("deletion": a small area under the curve). "insertion" starts from the baseline and brings
cells back, the largest first (a large area). Maps in random order are the control. Unlike the
pointing game, this needs no ground truth: it applies to photos.
"""

from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter

from attrib.analyses.heatmaps import Perturbation
from attrib.analyses.qformer import pictures_of
from attrib.analyses.saliency import GRADIENT, mean_map, saliency_maps
from attrib.analyses.visual_tokens import require_images
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch, Grid
from attrib.model.vlm import VLM
from attrib.runs.collected import Tables
from attrib.vocabulary import Baseline

RANDOM, FIRST = "random", f"{GRADIENT}, layer 0"
COLUMNS = ("example", "method", "statistic", "value")
_AT_ONCE = 32  # images per pass


def baseline_image(image: Image.Image, grid: Grid, baseline: Baseline) -> Image.Image:
    """What replaces erased cells: the image's mean colour, or the image blurred by a cell."""
    image = image.convert("RGB")
    if baseline == "blur":
        width = (grid.box[2] - grid.box[0]) / grid.cols
        return image.filter(ImageFilter.GaussianBlur(width))
    mean = np.asarray(image, float).mean((0, 1)).round().astype(int)
    return Image.new("RGB", image.size, tuple(mean.tolist()))


def replace_cells(
    image: Image.Image, other: Image.Image, grid: Grid, cells: Bool[np.ndarray, " cell"]
) -> Image.Image:
    """An image with the pixels of some cells of a grid taken from another image of its size."""
    made, (left, top, right, bottom) = image.convert("RGB"), grid.box
    xs = np.linspace(left, right, grid.cols + 1).round().astype(int).clip(0, image.width)
    ys = np.linspace(top, bottom, grid.rows + 1).round().astype(int).clip(0, image.height)
    for row, col in np.argwhere(cells.reshape(grid.rows, grid.cols)):
        box = (int(xs[col]), int(ys[row]), int(xs[col + 1]), int(ys[row + 1]))
        if box[0] < box[2] and box[1] < box[3]:
            made.paste(other.crop(box), box[:2])
    return made


def largest_first(values: Float[np.ndarray, " cell"], steps: int) -> Bool[np.ndarray, "state cell"]:
    """Which cells are chosen at each step: none at first, then the largest, in the end all.

    Cells without a value come last, tied cells in reading order. There are no more steps than
    cells.
    """
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    counts = np.unique(np.linspace(0, len(values), steps + 1).round().astype(int))
    rank = np.empty(len(values), int)
    rank[order] = np.arange(len(values))
    return rank < counts[:, None]


def area(curve: Float[np.ndarray, "state two"]) -> float:
    """Area under a curve (trapezoids); its columns are the share of cells and the value."""
    return float(np.trapezoid(curve[:, 1], curve[:, 0]))


def measure_deletion(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    how: Mapping[str, Perturbation],
    steps: int = 10,
    baseline: Baseline = "mean",
    seed: int = 0,
) -> Tables:
    """Table "deletion": areas under the deletion and insertion curves of each method's maps.

    And "curves", with a column `share` of cells chosen: the probabilities themselves.

    Columns: example, method, statistic ("deletion" or "insertion"), value. Maps are means over all
    layers, each scaled to the same sum; methods are those of `saliency_maps`, the gradient at the
    input of layer 0 alone, and "random". Values are probabilities of the token that is predicted
    first on the whole image.

    Args:
        vlm: The model.
        batch: The samples' requests.
        samples: The samples.
        how: Settings of heatmaps by name.
        steps: Number of steps from none to all cells.
        baseline: What replaces a cell: "mean" colour of the image, or the image under a "blur".
        seed: Of the random maps.

    Raises:
        AttribError: A sample has no image or several, or its visual tokens have no place in it.
    """
    require_images(batch)
    maps, predicted = saliency_maps(vlm, batch, how)
    rows: list[tuple] = []
    for i, pictures in enumerate(pictures_of(vlm, batch, samples)):
        if len(pictures) > 1 or (grid := pictures[0].grid) is None:
            raise AttribError("the visual tokens have no place in one image: no cell can be erased")
        cells = slice(grid.first, grid.first + grid.rows * grid.cols)
        own = {name: mean_map(values[i][:, cells])[0] for name, values in maps.items()}
        own[FIRST] = maps[GRADIENT][i][0, cells]
        own[RANDOM] = _random_map(samples[i].id, grid.rows * grid.cols, seed)
        curves = _curves(vlm, samples[i], grid, own, predicted[i], steps, baseline)
        rows += [(samples[i].id, *name, curve) for name, curve in curves.items()]
    return _tables(rows)


def _random_map(example: str, cells: int, seed: int) -> Float[np.ndarray, " cell"]:
    return np.random.default_rng([seed, crc32(example.encode())]).random(cells)


def _curves(
    vlm: VLM,
    sample: EditSample,
    grid: Grid,
    maps: Mapping[str, Float[np.ndarray, " cell"]],
    token: int,
    steps: int,
    baseline: Baseline,
) -> dict[tuple[str, str], Float[np.ndarray, "state two"]]:
    """Shares of cells and probabilities of a token, by method and statistic, for one sample."""
    image = sample.request.images[0].convert("RGB")
    other = baseline_image(image, grid, baseline)
    chosen = {name: largest_first(values, steps) for name, values in maps.items()}
    erased = {(name, "deletion"): states for name, states in chosen.items()}
    erased |= {(name, "insertion"): ~states for name, states in chosen.items()}
    distinct = {state.tobytes(): state for states in erased.values() for state in states}
    images = (replace_cells(image, other, grid, state) for state in distinct.values())
    found = dict(
        zip(distinct, _probabilities(vlm, sample.request.prompt, images, token), strict=True)
    )
    return {
        name: np.stack([chosen[name[0]].mean(1), [found[state.tobytes()] for state in states]], 1)
        for name, states in erased.items()
    }


@torch.no_grad()
def _probabilities(vlm: VLM, prompt: str, images: Iterator[Image.Image], token: int) -> list[float]:
    found: list[float] = []
    several = list(images)
    for start in range(0, len(several), _AT_ONCE):
        part = several[start : start + _AT_ONCE]
        logits = vlm.last_logits(vlm.encode(part, [prompt] * len(part)))
        found += logits.float().softmax(-1)[:, token].tolist()
    return found


def _tables(rows: Sequence[tuple]) -> Tables:
    areas = [(example, method, what, area(curve)) for example, method, what, curve in rows]
    curves = [
        (example, method, what, *point)
        for example, method, what, curve in rows
        for point in curve.tolist()
    ]
    return {
        "deletion": pd.DataFrame(areas, columns=list(COLUMNS)),
        "curves": pd.DataFrame(curves, columns=[*COLUMNS[:3], "share", "value"]),
    }
