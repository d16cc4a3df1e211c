"""An image's pixels as every model gets them: upright, opaque and RGB.

Files and images in memory take the same way, so that `vlm.encode([Image.open(path)], ...)` and a
dataset with that file see the same pixels: EXIF orientation applied, the current frame (the first
unless the caller chose another), transparency over white, 16 bits scaled instead of clipped.
"""

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from attrib.errors import AttribError

MAX_RATIO = 200  # of the sides; resizing the short side makes longer images huge
# What Pillow's decoders raise on damaged files, found by fuzzing.
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
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
META = {"exif", "transparency", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
WHITE = (255, 255, 255, 255)


def as_rgb(image: Image.Image) -> Image.Image:
    """The image upright in RGB; what was changed is in its `info["notes"]`.

    An RGB image that needs no change is returned as it is.

    Raises:
        AttribError: Its pixels cannot be decoded or have no fixed range, or it is too long.
    """
    check_ratio(image.size)
    if type(image) is Image.Image and image.mode == "RGB" and not META & set(image.info):
        return image
    try:
        image.load()
        # After loading: only then TIFF files are upright and PNG files have their EXIF.
        turn, notes = _orientation(image)
        rgb = to_rgb(image.transpose(TRANSPOSES[turn]) if turn in TRANSPOSES else image)
    except AttribError:
        raise
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise AttribError(f"truncated or damaged ({reason}); copy or download it again") from error
    mode = [] if image.mode == "RGB" else [f"mode {image.mode} converted"]
    rgb.info = {"notes": (*notes, *mode)}
    return rgb


def check_ratio(size: tuple[int, int]) -> None:
    """Refuse images without pixels, and those that are too long for their width.

    Raises:
        AttribError: One side is more than `MAX_RATIO` times the other.
    """
    short, long = sorted(size)
    if not short or long > MAX_RATIO * short:
        raise AttribError(
            f"{size[0]} x {size[1]} pixels: one side is more than {MAX_RATIO} times the other; "
            "crop it"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of a decoded image in RGB; alpha over white, and the high byte of 16 bits.

    Pillow keeps the high byte of 16-bit colour files too, so that grey saved as grey and grey
    saved as colour agree.

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


def _orientation(image: Image.Image) -> tuple[int, list[str]]:
    """The EXIF orientation (1: upright) and notes about it.

    `ImageOps.exif_transpose` also rewrites the EXIF data and fails on unrelated broken tags.
    """
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1, ["broken EXIF ignored"]
    if not isinstance(turn, int) or turn not in TRANSPOSES:
        return 1, []
    return turn, [f"EXIF orientation {turn} applied"]
