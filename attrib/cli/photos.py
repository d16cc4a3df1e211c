"""The photos that options name."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from attrib.cli.command import naming_option

if TYPE_CHECKING:
    from PIL import Image


def open_photos(paths: Iterable[Path] | None, name: str = "image") -> "list[Image.Image]":
    """The photos at the paths of an option; none without paths.

    Called before a model is loaded, which may take minutes: a wrong path is refused at once.

    Raises:
        AttribError: naming the option, the path, and why there is no image.
    """
    from attrib.data import open_photo

    with naming_option(name):
        return [open_photo(path) for path in paths or ()]
