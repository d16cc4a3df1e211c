"""Where the object is that a question is about, for data that know it, as cells of a grid."""

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
LARGEST = 128  # pixels of the longer side of an image that is kept
OTHER_RENDERING = 1  # seed of the other picture of an edit's scene


class Objects(NamedTuple):
    """Cells of a picture.

    Attributes:
        on: Which cells each object covers.
        asked: Which object is asked about.
    """

    on: Bool[np.ndarray, "object cell"]
    asked: int


def truths(data: "EditData") -> "Mapping[str, GroundTruth]":
    """Per sample what its question is about; empty for data that do not know."""
    from attrib.data.scenes.ground_truth import ground_truths

    return ground_truths(data) if data.name == "scenes-vqa" else {}


def objects_of(
    truth: "GroundTruth | None", grid: "Grid | None", *, other: bool = False
) -> Objects | None:
    """The cells of objects in a sample's picture or in the `other` one of its scene.

    None where that is not known: other data, no grid, or a question about no single object.
    """
    from attrib.analyses.pointing_game import on_cells
    from attrib.data.scenes import render

    if truth is None or grid is None or (asked := truth.target_object()) is None:
        return None
    masks = render(truth.scene, OTHER_RENDERING)[1] if other else truth.masks()
    return Objects(on_cells(masks, grid), asked)


def truth_scores(values: Float[np.ndarray, " cell"], objects: Objects | None) -> dict[str, float]:
    """How a map tells the object asked about: means on it, on others and elsewhere, and more.

    "auc" is against all other cells, "auc_objects" against those of other objects, "mass" the share
    of the map's sum that lies on the object; all NaN where the object is not known.
    """
    from attrib.analyses.pointing_game import point

    names = ("on_asked", "on_others", "elsewhere", "auc", "auc_objects", "mass")
    if objects is None:
        return dict.fromkeys(names, float("nan"))
    asked, any_object = objects.on[objects.asked], objects.on.any(0)
    found = point(values[None], objects.on, objects.asked)
    parts = (values[asked], values[any_object & ~asked], values[~any_object])
    means = [float(part.mean()) if len(part) else float("nan") for part in parts]
    mass = float(values[asked].sum() / values.sum())
    return dict(
        zip(names, (*means, float(found.auc[0]), float(found.auc_objects[0]), mass), strict=True)
    )


def placed_cells(
    values: Float[np.ndarray, " cell"], grid: "Grid", image: "Image.Image"
) -> pd.DataFrame:
    """A row per cell: row, col, value; and the box of the grid as shares of the image's sides."""
    row, col = np.indices((grid.rows, grid.cols)).reshape(2, -1)
    sizes = (image.width, image.height) * 2
    box = {side: at / size for side, at, size in zip(SIDES, grid.box, sizes, strict=True)}
    return pd.DataFrame({"row": row, "col": col, "value": values, **box})


def thumbnail(image: "Image.Image") -> UInt8[np.ndarray, "height width 3"]:
    """An image as it is kept with results: small."""
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    return np.asarray(small)
