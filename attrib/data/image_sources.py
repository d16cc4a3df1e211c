"""Where the images of a request come from: it keeps the sources, and opens them when accessed."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from attrib.data.images import open_photo
from attrib.data.pixels import as_rgb
from attrib.errors import AttribError, RowError

ImageSource = Image.Image | Callable[[], Image.Image]
Sources = ImageSource | tuple[ImageSource, ...] | None  # a tuple for several images in one prompt
GivenImage = ImageSource | str | Path


def as_source(image: GivenImage | Sequence[GivenImage] | None) -> Sources:
    """Where an image comes from, or several in a list; a path is opened by `open_photo`."""
    if isinstance(image, str | Path):
        return partial(open_photo, image)
    if isinstance(image, Sequence):
        several: Any = tuple(as_source(one) for one in image)
        return several if len(several) > 1 else next(iter(several), None)
    return image


def open_sources(source: Sources) -> list[Image.Image]:
    """The images of a source, upright in RGB.

    Raises:
        AttribError: one cannot be used; of several it is named as `image[1]`.
    """
    if isinstance(source, tuple):
        return [_open(one, f"image[{i}]: ") for i, one in enumerate(source)]
    return [] if source is None else [_open(source)]


def describe_source(source: Sources) -> str:
    """Size and mode of an image in memory."""
    if isinstance(source, tuple):
        return f"[{', '.join(map(describe_source, source))}]"
    if isinstance(source, Image.Image):
        return f"<{source.width}x{source.height} {source.mode}>"
    return "None" if source is None else "<opened on access>"


def _open(source: ImageSource | None, name: str = "") -> Image.Image:
    if source is None:
        raise AttribError(f"{name}None is no image; leave it out of the list")
    try:
        return as_rgb(source() if callable(source) else source)
    except AttribError as error:
        if not name or isinstance(error, RowError):  # which names the field
            raise
        raise AttribError(f"{name}{error}") from error
