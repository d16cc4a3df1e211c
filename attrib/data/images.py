"""Open untrusted image files safely.

Each file passes five checks, each with a one-line error:

1. its name stays inside the image root, links followed (no URL, no absolute path, no `..`);
2. it is a regular file and not empty;
3. it has a common format, detected from its bytes and not from its name;
4. its header announces a sane number of pixels and a sane shape, before anything is decoded;
5. all its pixels decode.

The result is RGB and the same on every machine (`attrib.data.pixels`). No file stays open; what was
decoded a moment ago is kept (`attrib.data.kept_pictures`).
"""

import io
import mimetypes
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from attrib.data.kept_pictures import KEPT
from attrib.data.pixels import DAMAGE, as_rgb, check_ratio
from attrib.errors import AttribError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte once decoded
EMPTY = "empty file (0 bytes); copy or download it again"
MAX_NAME = 200  # characters shown; a `data:` URL can have a megabyte
# Warning filters and Pillow's limit are global to the process, so threads decode one at a time.
_PROCESS_SETTINGS = threading.Lock()


class BadImage(AttribError):
    """An image file that cannot be used.

    Attributes:
        name: the file, as it was requested.
        reason: the failed check and what would help.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both as arguments, so that it can be pickled
        self.name = name if len(name) <= MAX_NAME else name[:MAX_NAME] + "..."
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name!r}: {self.reason}"


def open_inside(root: str | Path, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the image `name` under the folder `root`, in RGB.

    Args:
        root: the folder that no image may lie outside of.
        name: path relative to it, with slashes of either kind.
        max_pixels: larger images are refused; raise it for files you trust.

    Raises:
        BadImage: naming the file and the failed check.
    """
    return _open_file(_confined(root, name), name, f" under {root}", max_pixels)


def check_inside(root: str | Path, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Run checks 1 to 4 of `open_inside` without decoding the image.

    Raises:
        BadImage: naming the file and the failed check.
    """
    with _header(_opened(_confined(root, name), name, f" under {root}"), name, max_pixels):
        pass


def open_bytes(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image that a table holds, in RGB: checks 2 to 5 of `open_inside`.

    Raises:
        BadImage: naming the image by `name`, and the failed check.
    """
    with _header(_in_memory(data, name), name, max_pixels) as image:
        return _decode(image, name)


def check_bytes(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Run checks 2 to 4 of `open_inside` on an image that a table holds.

    Raises:
        BadImage: naming the image by `name`, and the failed check.
    """
    with _header(_in_memory(data, name), name, max_pixels):
        pass


def open_photo(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the image at a path that the user typed, in RGB: checks 2 to 5 of `open_inside`.

    Raises:
        BadImage: naming the path and the failed check.
    """
    _refuse_url(str(path))
    name = str(path)
    return _open_file(Path(path).expanduser(), name, "", max_pixels)


def _open_file(path: Path, name: str, under: str, max_pixels: int) -> Image.Image:
    def decode() -> Image.Image:
        with _header(_opened(path, name, under), name, max_pixels) as image:
            return _decode(image, name)

    return KEPT.of_file(path, max_pixels, decode)


def _decode(image: ImageFile.ImageFile, name: str) -> Image.Image:
    try:
        return as_rgb(image)
    except AttribError as error:
        raise BadImage(name, str(error)) from error


def _in_memory(data: bytes, name: str) -> BinaryIO:
    if not data:
        raise BadImage(name, EMPTY)
    return io.BytesIO(data)


def _opened(path: Path, name: str, under: str) -> BinaryIO:
    """The file at a path, which is a regular one and not empty."""
    try:
        found = path.stat()
        kind = found.st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would block
            what = "a folder" if stat.S_ISDIR(kind) else "a device or a pipe"
            raise BadImage(name, f"{what}, not an image file")
        if found.st_size == 0:
            raise BadImage(name, EMPTY)
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage(name, f"no such file{under}") from error
    except OSError as error:
        raise BadImage(name, f"cannot be opened: {error.strerror}") from error


@contextmanager
def _header(file: BinaryIO, name: str, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size accepted, not decoded yet; closes the file."""
    with file, _pillow_settings(max_pixels):
        start = file.read(16)
        try:
            image = Image.open(file, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = re.search(r"\d+", str(error))
            raise BadImage(
                name,
                f"{pixels[0] if pixels else 'too many'} pixels, more than the limit of "
                f"{max_pixels}; make it smaller, or raise max_pixels if you trust it",
            ) from error
        except UnidentifiedImageError as error:
            raise BadImage(name, _no_image(name, start)) from error
        except DAMAGE as error:
            raise BadImage(name, f"its header is damaged ({error})") from error
        with image:
            try:
                check_ratio(image.size)
            except AttribError as error:
                raise BadImage(name, str(error)) from error
            yield image


@contextmanager
def _pillow_settings(max_pixels: int) -> Iterator[None]:
    """Set Pillow's pixel limit and silence its warnings, which also appear while decoding."""
    with _PROCESS_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _confined(root: str | Path, name: str) -> Path:
    """The real path of `name` inside `root`."""
    _refuse_url(name)
    path = name.replace("\\", "/")
    if path.startswith("/") or PureWindowsPath(path).drive:
        raise BadImage(name, "an absolute path; give it relative to the image root")
    if ".." in PurePosixPath(path).parts:
        raise BadImage(name, "leads out of the image root with '..'")
    try:
        top = Path(root).resolve()
        real = (top / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a loop of links, ...
        raise BadImage(name, f"no file can have this name ({error})") from error
    if not real.is_relative_to(top):
        raise BadImage(name, f"a link that leads out of the image root {root}")
    return real


def _refuse_url(name: str) -> None:
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://|(data|file|blob|about):", name):
        raise BadImage(name, "a URL; nothing is downloaded here: fetch the file and give its path")


def _no_image(name: str, start: bytes) -> str:
    """Why a file is no image: its first bytes, up to the first blank or bracket."""
    if (mimetypes.guess_type(name)[0] or "").startswith("video/"):
        return "a video; save its frames as images and give these, in order"
    text = start.decode("ascii", errors="backslashreplace")
    word = re.split(r"[\s>]", text.lstrip())[0]
    return f"not an image (starts with {word!r}; expected one of {', '.join(FORMATS)})"
