"""The pictures of a page: small files, and the place of their visual tokens."""

import io
from base64 import b64encode
from typing import Any

from PIL import Image

from attrib.model.batch import Batch

LONGEST_SIDE = 800  # pixels of a photo on the page
PIXEL_ART = 256  # up to this size a picture keeps every pixel
QUALITY = 82


def picture_data(batch: Batch, images: list[Image.Image]) -> list[dict[str, Any]]:
    """Each picture with its frame, grid and visual tokens, as the page draws them."""
    found = []
    for image, picture in zip(images, batch.pictures[0], strict=True):
        width, height = image.size
        grid, tokens = picture.grid, picture.tokens
        left, top, right, bottom = grid.box if grid else (0.0, 0.0, float(width), float(height))
        frame = [min(0.0, left), min(0.0, top), max(width, right), max(height, bottom)]
        found.append(
            {
                "source": data_uri(image),
                "small": max(image.size) <= PIXEL_ART,
                "size": [width, height],
                "frame": frame,
                "box": [left, top, right, bottom] if grid else None,
                "rows": grid.rows if grid else 0,
                "cols": grid.cols if grid else 0,
                "first": grid.first if grid else 0,
                "tokens": [tokens.start, tokens.stop],
            }
        )
    return found


def data_uri(image: Image.Image) -> str:
    """A picture as a data URI: PNG for a small one, JPEG of at most 800 pixels for a photo."""
    small = max(image.size) <= PIXEL_ART
    shown, file = image.convert("RGB"), io.BytesIO()
    if small:
        shown.save(file, format="PNG", optimize=True)
    else:
        shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        shown.save(file, format="JPEG", quality=QUALITY, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
