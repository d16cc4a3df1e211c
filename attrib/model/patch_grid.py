"""Find the region of the original image that each visual token covers.

Resizing, cropping, padding, tiling and merging differ between processors. Instead of repeating
their arithmetic, we process a probe image of the same size whose red channel holds the x coordinate
and whose green channel holds the y coordinate; the output shows where every pixel came from. A
black and a white image of that size undo the normalisation and reveal padding.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attrib.model.batch import Grid

Box = tuple[float, float, float, float]


def grid_finder(
    image_processor: Any, patch_size: int | None
) -> Callable[[tuple[int, int], int, int], Grid | None]:
    """Return a cached function from an image's size, its number of tokens and that of images."""
    cached = lru_cache(maxsize=4096)(partial(find_grid, image_processor))

    def grid_of(size: tuple[int, int], num_tokens: int, num_images: int) -> Grid | None:
        return None if patch_size is None else cached(size, num_tokens, patch_size, num_images)

    return grid_of


def find_grid(
    image_processor: Any,
    size: tuple[int, int],
    num_tokens: int,
    patch_size: int,
    num_images: int = 1,
) -> Grid | None:
    """Return the grid of an image's visual tokens, or None if they form no regular grid.

    Models that split an image into tiles also see the whole image (LLaVA-NeXT, LLaVA-OneVision,
    Idefics 3, SmolVLM, InternVL): the grid is that of the whole, which starts at `Grid.first`.

    Args:
        image_processor: The Hugging Face image processor.
        size: Width and height of the original image.
        num_tokens: Number of visual tokens of the image.
        patch_size: Side of the vision tower's patches, in pixels of the processed image.
        num_images: Number of images in the prompt; some processors cut only one alone into tiles.
    """
    if min(size) < 2 or num_tokens == 0:
        return None
    source = _source_coordinates(image_processor, size, num_images)
    found = (
        _grid_of_patches(source, num_tokens)
        if source.ndim == 3
        else _grid_of_tiles(source, num_tokens, patch_size, size)
    )
    if found is None:
        return None
    rows, cols, box, first = found
    return Grid(rows, cols, _snap(box, size), first)


def _source_coordinates(
    image_processor: Any, size: tuple[int, int], num_images: int
) -> Float[Tensor, "*shape xy"]:
    """Return the source of each pixel of the processed image in the original one, NaN for padding.

    Returns:
        "tile height width xy", or "patch pixel xy" for processors that return flat patches.
    """
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.rint(np.linspace(0, 255, width))
    ramp[..., 1] = np.rint(np.linspace(0, 255, height))[:, None]

    def process(pixels: np.ndarray) -> Tensor:
        image = Image.fromarray(pixels)
        images = [[image] * num_images]
        made = image_processor(images=images, return_tensors="pt")
        # Video-LLaVA has a name for those of images.
        out = made[next(key for key in made if key.startswith("pixel_values"))]
        flat = out.ndim == 2  # patches, channel by channel
        parts = out.reshape(len(out), 3, -1) if flat else out.reshape(-1, *out.shape[-3:])
        return parts[: len(parts) // num_images, :2].double()  # of the first image

    low, high = process(np.zeros_like(ramp)), process(np.full_like(ramp, 255))
    share = torch.where((high - low).abs() > 1e-6, (process(ramp) - low) / (high - low), torch.nan)
    # Pixel j covers j to j + 1, so its centre is at j + 0.5.
    scale = torch.tensor([width - 1.0, height - 1.0], dtype=share.dtype)
    return share.movedim(1, -1) * scale + 0.5


def _grid_of_tiles(
    source: Float[Tensor, "tile height width xy"],
    num_tokens: int,
    patch_size: int,
    size: tuple[int, int],
) -> tuple[int, int, Box, int] | None:
    num_tiles = len(source)
    boxes = [_box_of_tile(tile) for tile in source]
    whole = [i for i, box in enumerate(boxes) if num_tiles == 1 or _covers(box, size)]
    if not whole:
        return None
    rows, cols = source.shape[1] // patch_size, source.shape[2] // patch_size
    # Either all tiles have equally many tokens, in order; or the whole image comes first and the
    # other tiles are joined with line-break tokens, which makes the count irregular.
    per_tile, first = num_tokens / num_tiles, whole[0] * num_tokens // num_tiles
    if not _merge_side(rows, cols, per_tile) and whole[0] == 0 and rows * cols < num_tokens:
        per_tile, first = rows * cols, 0
    side = _merge_side(rows, cols, per_tile)
    return (rows // side, cols // side, boxes[whole[0]], first) if side else None


def _merge_side(rows: int, cols: int, num_tokens: int | float) -> int | None:
    """Return the side of the patch squares that are merged into tokens, None if they do not fit."""
    side = round(math.sqrt(rows * cols / num_tokens))
    if side < 1 or side * side * num_tokens != rows * cols:
        return None
    return side if rows % side == 0 and cols % side == 0 else None


def _grid_of_patches(
    source: Float[Tensor, "patch pixel xy"], num_tokens: int
) -> tuple[int, int, Box, int] | None:
    if len(source) % num_tokens:
        return None
    tokens = source.reshape(num_tokens, -1, 2)  # merged patches are adjacent
    x, y = tokens.mean(1).unbind(-1)
    spread = tokens.amax(1) - tokens.amin(1)
    for cols in (n for n in range(1, num_tokens + 1) if num_tokens % n == 0):
        grid_x, grid_y = x.reshape(-1, cols), y.reshape(-1, cols)
        off = torch.stack([grid_x - grid_x.mean(0), grid_y - grid_y.mean(1, keepdim=True)], -1)
        if (off.abs() < 0.1 * spread.mean(0)).all():
            half_x, half_y = (spread.mean(0) / 2).tolist()
            left, right = float(x.min()) - half_x, float(x.max()) + half_x
            top, bottom = float(y.min()) - half_y, float(y.max()) + half_y
            return num_tokens // cols, cols, (left, top, right, bottom), 0
    return None


def _box_of_tile(source: Float[Tensor, "height width xy"]) -> Box:
    left, right = _ends(source[..., 0].nanmean(0))
    top, bottom = _ends(source[..., 1].nanmean(1))
    return left, top, right, bottom


def _ends(centres: Float[Tensor, " n"]) -> tuple[float, float]:
    """Return start and end of a row of equal pixels, from a line fitted to their centres."""
    known = torch.nonzero(~centres.isnan())[:, 0]
    margin = len(known) // 8  # interpolation bends the ramp near the edges
    known = known[margin : len(known) - margin]
    index = known.double() - known.double().mean()
    slope = (index * centres[known]).sum() / index.square().sum()
    start = centres[known].mean() - slope * (known.double().mean() + 0.5)
    return float(start), float(start + slope * len(centres))


def _covers(box: Box, size: tuple[int, int]) -> bool:
    slack_x, slack_y = 0.02 * size[0], 0.02 * size[1]
    near = box[0] <= slack_x and box[1] <= slack_y
    return near and box[2] >= size[0] - slack_x and box[3] >= size[1] - slack_y


def _snap(box: Box, size: tuple[int, int]) -> Box:
    """Snap edges to the image's, within the resolution of 256 shades."""
    edges = zip(box, (0, 0, *size), (*size, *size), strict=True)
    snapped = [
        float(edge) if abs(at - edge) <= max(1.0, length / 255) else round(at, 1)
        for at, edge, length in edges
    ]
    return snapped[0], snapped[1], snapped[2], snapped[3]
