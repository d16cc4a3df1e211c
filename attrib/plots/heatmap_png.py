"""Heatmaps as small pictures, a pixel a cell, for pages that lay them over an image themselves."""

import io

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.colors import Normalize
from PIL import Image

from attrib.plots.overlay import COLORS

STEPS = 64


def heatmap_png(values: Float[np.ndarray, "row col"]) -> bytes:
    """A PNG with a pixel per cell, from the darkest to the brightest colour of `overlay`.

    The colours are these cells' own, so that a faint map can be seen; cells without a value are
    clear.
    """
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    shades = matplotlib.colormaps[COLORS](Normalize(low, high)(values), bytes=True)
    shades[~np.isfinite(values), 3] = 0
    return _png(shades)


def heatmap_colors() -> bytes:
    """A PNG with the colours of `heatmap_png`, from the lowest to the highest value."""
    return _png(matplotlib.colormaps[COLORS](np.linspace(0, 1, STEPS)[None], bytes=True))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, format="PNG", optimize=True)
    return file.getvalue()
