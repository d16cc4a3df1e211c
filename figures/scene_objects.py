"""The object that a question is about, as cells of the grid of visual tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8

if TYPE_CHECKING:
    from PIL import Image

    from attrib.data import EditData
    from attrib.data.scenes.ground_truth import GroundTruth
    from attrib.model.batch import Grid

SIDES = ("left", "top", "right", "bottom")
STORED_SIZE = 128  # pixels of the longer side of a stored image
OTHER_RENDERING = 1  # seed of the second image of an edit's scene
SUFFIX = " The answer is:"


class ObjectCells(NamedTuple):
    """Cells of an image.

    Attributes:
        covered: Which cells each object covers.
        target: Index of the object that the question is about.
    """

    covered: Bool[np.ndarray, "object cell"]
    target: int


def ground_truths_of(data: "EditData") -> "Mapping[str, GroundTruth]":
    """Return the ground truth of each sample by id; empty if the data have none."""
    from attrib.data.scenes.ground_truth import ground_truths

    return ground_truths(data) if data.name == "scenes-vqa" else {}


def object_cells(
    truth: "GroundTruth | None", grid: "Grid | None", *, other: bool = False
) -> ObjectCells | None:
    """Return the cells of objects in a sample's image, or in the `other` image of its scene.

    None if they are unknown: other data, no grid, or a question about no single object.
    """
    from attrib.analyses.pointing_game import masks_to_grid
    from attrib.data.scenes import render

    if truth is None or grid is None or (target := truth.target_object()) is None:
        return None
    masks = render(truth.scene, OTHER_RENDERING)[1] if other else truth.masks()
    return ObjectCells(masks_to_grid(masks, grid), target)


def truth_scores(
    values: Float[np.ndarray, " cell"], objects: ObjectCells | None
) -> dict[str, float]:
    """Return how well a map finds the object asked about; all NaN if the object is unknown.

    "on_asked", "on_others" and "elsewhere" are means over cells; "auc" is against all other cells,
    "auc_objects" against cells of other objects; "mass" is the share of the map's sum on the
    object.
    """
    from attrib.analyses.pointing_game import point

    names = ("on_asked", "on_others", "elsewhere", "auc", "auc_objects", "mass")
    if objects is None:
        return dict.fromkeys(names, float("nan"))
    target, any_object = objects.covered[objects.target], objects.covered.any(0)
    found = point(values[None], objects.covered, objects.target)
    parts = (values[target], values[any_object & ~target], values[~any_object])
    means = [float(part.mean()) if len(part) else float("nan") for part in parts]
    mass = float(values[target].sum() / values.sum())
    scores = (*means, float(found.auc[0]), float(found.auc_objects[0]), mass)
    return dict(zip(names, scores, strict=True))


def grid_cells(
    values: Float[np.ndarray, " cell"], grid: "Grid", image: "Image.Image"
) -> pd.DataFrame:
    """Return a row per cell: row, col, value, and the grid's box as shares of the image."""
    row, col = np.indices((grid.rows, grid.cols)).reshape(2, -1)
    sizes = (image.width, image.height) * 2
    box = {side: at / size for side, at, size in zip(SIDES, grid.box, sizes, strict=True)}
    return pd.DataFrame({"row": row, "col": col, "value": values, **box})


def thumbnail(image: "Image.Image") -> UInt8[np.ndarray, "height width 3"]:
    """Return an image at the size that is stored with results."""
    small = image.copy()
    small.thumbnail((STORED_SIZE, STORED_SIZE))
    return np.asarray(small)


def question_text(prompt: str) -> str:
    """Return a prompt without the suffix that all prompts share."""
    return prompt.removesuffix(SUFFIX)
