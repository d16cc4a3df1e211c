"""The one guarded way to open a picture that someone else wrote.

A picture goes through five gates, each with a one-line refusal:

1. its name stays inside the image root, links followed (no URL, no absolute path, no `..`);
2. it is a file, and not an empty one;
3. it is of a common format, told by its bytes and not by its name;
4. its header announces a sane number of pixels, before anything is decoded;
5. its pixels decode, all of them.

What passes comes back as RGB, the same on every machine: turned as its EXIF says, the first frame,
transparency over white, 16 bits scaled instead of clipped. No file stays open.
"""

import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from attrib.errors import AttribError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Pillow's own limit: a quarter of a gigabyte once decoded.
MAX_PIXELS = 89_478_485
# What Pillow's decoders raise on damaged files, found by feeding them damaged files.
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LONGEST_NAME = 200  # A `data:` URL of a megabyte is not repeated in a message.
WHITE = (255, 255, 255, 255)
# Warning filters and Pillow's limit belong to the process: one thread at a time may set them, so
# threads decode in turn. Processes do not wait for each other.
_PROCESS_SETTINGS = threading.Lock()


class BadImage(AttribError):
    """A picture that cannot be used.

    Attributes:
        name: the picture, as it was asked for.
        reason: the gate it did not pass and what would help.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # Both are arguments, so that a worker can send it on.
        self.name = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..."
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name!r}: {self.reason}"


def open_inside(root: str | Path, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture `name` under the folder `root`, in RGB.

    Args:
        root: the folder that no picture may lie outside of.
        name: path relative to it, with slashes of either kind.
        max_pixels: larger pictures are refused; raise it for files you trust.

    Raises:
        BadImage: naming the picture and the gate it did not pass.
    """
    return _decode(_confined(root, name), name, max_pixels, f" under {root}")


def check_inside(root: str | Path, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Put a picture through gates 1 to 4 of `open_inside`, without decoding it.

    Raises:
        BadImage: naming the picture and the gate it did not pass.
    """
    with _header(_confined(root, name), name, max_pixels, f" under {root}"):
        pass


def open_photo(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture at a path that the user typed, in RGB: gates 2 to 5 of `open_inside`.

    Raises:
        BadImage: naming the path and the gate it did not pass.
    """
    _refuse_url(str(path))
    return _decode(Path(path).expanduser(), str(path), max_pixels, "")


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of a decoded image in RGB; alpha goes over white, 16 bits keep their high byte.

    The high byte is also what Pillow keeps of a 16-bit colour file, so that grey saved as grey
    and grey saved as colour agree.

    Raises:
        AttribError: for modes without a fixed range of values (32-bit integer, float).
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise AttribError(
            f"pixels of mode {image.mode} have no fixed range; save it with 8 or 16 bits a channel"
        )
    if image.has_transparency_data:
        over = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), over)
    return image.convert("RGB")


def _decode(path: Path, name: str, max_pixels: int, under: str) -> Image.Image:
    with _header(path, name, max_pixels, under) as image:
        try:
            image.load()
            # After loading: TIFF files turn themselves then, and PNG files have their EXIF then.
            turn, notes = _orientation(image)
            turned = image.transpose(TURNS[turn]) if turn in TURNS else image
            rgb = to_rgb(turned)
        except AttribError as error:
            raise BadImage(name, str(error)) from error
        except DAMAGE as error:
            reason = str(error) or type(error).__name__
            raise BadImage(
                name, f"cut off or damaged ({reason}); copy or download it again"
            ) from error
        mode = [] if image.mode == "RGB" else [f"mode {image.mode} converted"]
    rgb.info = {"notes": (*notes, *mode)}
    return rgb


@contextmanager
def _header(path: Path, name: str, max_pixels: int, under: str) -> Iterator[ImageFile.ImageFile]:
    """The picture with its header read and its size accepted; its pixels are not decoded yet."""
    try:
        found = path.stat()
        kind = found.st_mode
        if not stat.S_ISREG(kind):  # Opening a pipe would wait for ever.
            what = "a folder" if stat.S_ISDIR(kind) else "a device or a pipe"
            raise BadImage(name, f"{what}, not an image file")
        if found.st_size == 0:
            raise BadImage(name, "empty file (0 bytes); copy or download it again")
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage(name, f"no such file{under}") from error
    except OSError as error:
        raise BadImage(name, f"cannot be opened: {error.strerror}") from error
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
            raise BadImage(name, f"not an image ({_seen(start)})") from error
        except DAMAGE as error:
            raise BadImage(name, f"its header is damaged ({error})") from error
        with image:
            yield image


@contextmanager
def _pillow_settings(max_pixels: int) -> Iterator[None]:
    """Inside, Pillow keeps to `max_pixels` and does not warn about what we refuse or forgive.

    It warns about metadata even while it decodes (TIFF).
    """
    with _PROCESS_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> tuple[int, list[str]]:
    """The EXIF orientation (1: upright) and what there is to note about it.

    `ImageOps.exif_transpose` is not used: it also writes the EXIF data anew and fails where
    an unrelated tag is broken.
    """
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1, ["broken EXIF ignored"]
    if not isinstance(turn, int) or turn not in TURNS:
        return 1, []
    return turn, [f"EXIF orientation {turn} applied"]


def _confined(root: str | Path, name: str) -> Path:
    """The real path of `name`, which lies inside `root`."""
    _refuse_url(name)
    path = name.replace("\\", "/")
    if path.startswith("/") or PureWindowsPath(path).drive:
        raise BadImage(name, "an absolute path; give it relative to the image root")
    if ".." in PurePosixPath(path).parts:
        raise BadImage(name, "leads out of the image root with '..'")
    try:
        top = Path(root).resolve()
        real = (top / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # A NUL byte, a circle of links, ...
        raise BadImage(name, f"no file can have this name ({error})") from error
    if not real.is_relative_to(top):
        raise BadImage(name, f"a link that leads out of the image root {root}")
    return real


def _refuse_url(name: str) -> None:
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://|(data|file|blob|about):", name):
        raise BadImage(name, "a URL; nothing is downloaded here: fetch the file and give its path")


def _seen(start: bytes) -> str:
    """How a file that is no image starts, up to the first blank or bracket."""
    text = start.decode("ascii", errors="backslashreplace")
    word = re.split(r"[\s>]", text.lstrip())[0]
    return f"starts with {word!r}; expected one of {', '.join(FORMATS)}"
