"""Untrusted images: which are refused, with which message, and what the others decode to."""

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attrib.data.images import (
    MAX_PIXELS,
    BadImage,
    check_inside,
    open_inside,
    open_photo,
)
from attrib.data.pixels import to_rgb


def refusal(root, name, use=open_inside, **options) -> str:
    with pytest.raises(BadImage) as error:
        use(root, name, **options)
    assert error.value.name == name
    assert "\n" not in str(error.value)
    return error.value.reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def put(tmp_path):
    """Writes bytes to a file under the image root and returns its name."""

    def write(content: bytes, name: str = "x.jpg") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        return name

    return write


def test_a_sound_picture_passes_and_keeps_its_pixels(tmp_path, put, photo):
    image = open_inside(tmp_path, put(saved(photo, "PNG")))
    assert image.mode == "RGB" and image.tobytes() == photo.tobytes()
    check_inside(tmp_path, "x.jpg")


@pytest.mark.parametrize("use", [open_inside, check_inside])
class TestRefusedBeforeDecoding:
    def test_missing(self, tmp_path, use):
        assert refusal(tmp_path, "no.jpg", use) == f"no such file under {tmp_path}"

    def test_missing_below_a_file(self, tmp_path, put, photo, use):
        put(saved(photo, "PNG"))
        assert refusal(tmp_path, "x.jpg/y.jpg", use) == f"no such file under {tmp_path}"

    def test_empty(self, tmp_path, put, use):
        expected = "empty file (0 bytes); copy or download it again"
        assert refusal(tmp_path, put(b""), use) == expected

    def test_html(self, tmp_path, put, use):
        reason = refusal(tmp_path, put(b"<html><body>404"), use)
        assert reason == (
            "not an image (starts with '<html'; expected one of JPEG, PNG, WEBP, GIF, BMP, TIFF)"
        )

    def test_formats_outside_the_list(self, tmp_path, put, photo, use):
        assert refusal(tmp_path, put(saved(photo, "PPM")), use).startswith("not an image")
        assert refusal(tmp_path, put(b"%!PS-Adobe-3.0 EPSF"), use).startswith("not an image")
        video = put(b"\0\0\0\x20ftypisom", "clip.mp4")
        assert refusal(tmp_path, video, use).startswith("a video; save its frames as images")

    def test_bomb(self, tmp_path, put, use):
        assert refusal(tmp_path, put(png_header(20_000, 20_000)), use) == (
            "400000000 pixels, more than the limit of 89478485; make it smaller, "
            "or raise max_pixels if you trust it"
        )

    def test_large_but_below_what_pillow_calls_an_attack(self, tmp_path, put, use):
        reason = refusal(tmp_path, put(png_header(10_000, 10_000)), use)
        assert reason.startswith("100000000 pixels, more than the limit")

    def test_a_folder(self, tmp_path, use):
        (tmp_path / "folder.jpg").mkdir()
        assert refusal(tmp_path, "folder.jpg", use) == "a folder, not an image file"

    def test_a_pipe_is_refused_without_blocking(self, tmp_path, use):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert refusal(tmp_path, "pipe.jpg", use) == "a device or a pipe, not an image file"

    @pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "..\\x.jpg", "a/.."])
    def test_climbing(self, tmp_path, use, name):
        assert refusal(tmp_path, name, use) == "leads out of the image root with '..'"

    @pytest.mark.parametrize("name", ["/etc/passwd", "\\\\host\\x.jpg", "C:\\x.jpg", "C:/x.jpg"])
    def test_absolute(self, tmp_path, use, name):
        assert refusal(tmp_path, name, use) == (
            "an absolute path; give it relative to the image root"
        )

    @pytest.mark.parametrize(
        "name", ["http://a/x.jpg", "HTTPS://a/x.jpg", "file:///x.jpg", "file:x", "data:image/png,"]
    )
    def test_urls(self, tmp_path, use, name):
        assert refusal(tmp_path, name, use) == (
            "a URL; nothing is downloaded here: fetch the file and give its path"
        )

    def test_a_link_out_of_the_root(self, tmp_path, put, photo, use):
        put(saved(photo, "PNG"), "outside.png")
        root = tmp_path / "root"
        root.mkdir()
        (root / "link.png").symlink_to(tmp_path / "outside.png")
        (root / "folder").symlink_to(tmp_path)
        for name in ("link.png", "folder/outside.png"):
            assert refusal(root, name, use) == f"a link that leads out of the image root {root}"

    def test_a_loop_of_links(self, tmp_path, use):
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        assert refusal(tmp_path, "a", use).startswith("no file can have this name")

    def test_impossible_file_names(self, tmp_path, use):
        assert refusal(tmp_path, "a\0b", use).startswith("no file can have this name")
        assert refusal(tmp_path, "\ud800", use).startswith("no file can have this name")


def test_a_very_long_name_is_cut_in_the_message(tmp_path):
    with pytest.raises(BadImage) as error:
        open_inside(tmp_path, "data:" + "A" * 1_000_000)
    assert len(str(error.value)) < 400


def test_a_name_that_is_too_long_for_the_disk_is_refused(tmp_path):
    with pytest.raises(BadImage, match="cannot be opened: File name too long"):
        open_inside(tmp_path, "x" * 300)


def test_links_inside_the_root_are_followed(tmp_path, put, photo):
    put(saved(photo, "PNG"), "a/x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "root").symlink_to(tmp_path / "a")
    assert open_inside(tmp_path, "link.png").size == photo.size
    assert open_inside(tmp_path / "root", "x.png").size == photo.size


@settings(max_examples=200)
@given(
    parts=st.lists(
        st.sampled_from(
            ["..", ".", "", "in", "link", "/", "\\", "C:", "~", "x.png", "%2e%2e", "\0"]
        ),
        max_size=6,
    ),
    joint=st.sampled_from(["/", "\\", "//", ""]),
)
def test_no_name_leads_out_of_the_root(tmp_path_factory, parts, joint):
    base = tmp_path_factory.getbasetemp() / "confined"
    if not base.exists():
        (base / "root" / "in").mkdir(parents=True)
        (base / "root" / "link").symlink_to(base)
        Image.new("RGB", (1, 1), (255, 0, 0)).save(base / "x.png")
        for inside in ("root/x.png", "root/in/x.png"):
            Image.new("RGB", (1, 1), (0, 255, 0)).save(base / inside)
    try:
        image = open_inside(base / "root", joint.join(parts))
    except BadImage:
        return
    assert image.getpixel((0, 0)) == (0, 255, 0), "the picture of another folder was opened"


def test_the_pixel_limit_is_an_argument(tmp_path, put, photo):
    name = put(saved(photo, "PNG"))
    assert refusal(tmp_path, name, max_pixels=2399).startswith("2400 pixels, more than the limit")
    assert open_inside(tmp_path, name, max_pixels=2400).size == photo.size
    # Raised above Pillow's own limit: the header passes, and the missing pixels are the trouble.
    bomb = put(png_header(20_000, 20_000), "bomb.png")
    check_inside(tmp_path, bomb, max_pixels=400_000_000)


def test_process_settings_are_restored(tmp_path, put):
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    refusal(tmp_path, put(png_header(20_000, 20_000)), max_pixels=MAX_PIXELS + 1)
    assert before == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters


def test_a_truncated_jpeg_is_found_by_decoding(tmp_path, put, photo):
    whole = saved(photo, "JPEG")
    name = put(whole[: len(whole) // 2])
    check_inside(tmp_path, name)
    reason = refusal(tmp_path, name)
    assert reason.startswith("truncated or damaged (")
    assert reason.endswith("); copy or download it again")


@settings(max_examples=150)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
def test_a_damaged_file_is_decoded_or_refused_but_never_breaks_the_run(
    tmp_path_factory, data, format
):
    content = bytearray(saved(Image.linear_gradient("L").resize((16, 16)).convert("RGB"), format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = content[: data.draw(st.integers(1, len(content)))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(cut)
    try:
        assert open_photo(path, max_pixels=1_000_000).mode == "RGB"
    except BadImage as error:
        assert "\n" not in str(error)


# Top left pixel red, all others blue: where red is tells the turn.
UPRIGHT = np.zeros((2, 3, 3), np.uint8) + np.uint8([0, 0, 255])
UPRIGHT[0, 0] = (255, 0, 0)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT.transpose(1, 0, 2), 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", STORED)
def test_exif_orientation_is_applied_once(tmp_path, put, turn, format):
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(np.ascontiguousarray(STORED[turn]))
    options = {"lossless": True} if format == "WEBP" else {}
    image = open_inside(tmp_path, put(saved(stored, format, exif=exif, **options)))
    assert np.array_equal(np.asarray(image), UPRIGHT)
    assert not image.getexif()


def test_exif_orientation_of_a_jpeg_is_noted(tmp_path, put, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_inside(tmp_path, put(saved(photo, "JPEG", exif=exif)))
    assert image.size == (40, 60)
    assert image.info["notes"] == ("EXIF orientation 6 applied",)


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_an_unknown_orientation_is_ignored(tmp_path, put, photo, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    assert open_inside(tmp_path, put(saved(photo, "PNG", exif=exif))).size == photo.size


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\x00\x05\x01\x12",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x00\x00\x00\x00",
    ],
)
def test_a_picture_with_broken_exif_is_used(tmp_path, put, photo, exif):
    image = open_inside(tmp_path, put(saved(photo, "JPEG", exif=exif)))
    assert image.size == photo.size


def modes() -> dict[str, tuple[Image.Image, str, tuple[int, int, int]]]:
    """Name -> a picture of one colour, the format to store it in, and the RGB that it is."""
    grey16 = Image.fromarray(np.full((3, 4), 128 * 256 + 255, np.uint16))
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    return {
        "1": (Image.new("1", (4, 3), 1), "PNG", (255, 255, 255)),
        "L": (Image.new("L", (4, 3), 77), "PNG", (77, 77, 77)),
        "I;16": (grey16, "PNG", (128, 128, 128)),
        "I;16 TIFF": (grey16, "TIFF", (128, 128, 128)),
        "P": (palette, "PNG", (200, 100, 50)),
        "P in a GIF": (palette, "GIF", (200, 100, 50)),
        "LA": (Image.new("LA", (4, 3), (0, 51)), "PNG", (204, 204, 204)),
        "RGBA": (Image.new("RGBA", (4, 3), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        "RGBA in a WebP": (Image.new("RGBA", (4, 3), (0, 0, 0, 0)), "WEBP", (255, 255, 255)),
        "CMYK": (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        "BMP": (Image.new("RGB", (4, 3), (1, 2, 3)), "BMP", (1, 2, 3)),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_mode_becomes_rgb(tmp_path, put, mode):
    stored, format, colour = modes()[mode]
    image = open_inside(tmp_path, put(saved(stored, format)))
    assert image.mode == "RGB" and image.size == (4, 3)
    assert image.getcolors() == [(12, colour)]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path, put):
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    for transparency in (1, b"\xff\x00"):
        image = open_inside(tmp_path, put(saved(palette, "PNG", transparency=transparency)))
        assert image.getcolors() == [(12, (255, 255, 255))]


def test_a_transparent_colour_of_an_rgb_picture_is_white(tmp_path, put):
    stored = saved(Image.new("RGB", (2, 2), (5, 6, 7)), "PNG", transparency=(5, 6, 7))
    assert open_inside(tmp_path, put(stored)).getcolors() == [(4, (255, 255, 255))]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(tmp_path, put, format):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert open_inside(tmp_path, put(content)).getcolors() == [(12, (255, 0, 0))]


def test_16_bits_are_scaled_and_not_clipped():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(ramp)))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(tmp_path, put, mode):
    name = put(saved(Image.new(mode, (4, 3), 1), "TIFF"))
    assert refusal(tmp_path, name) == (
        f"pixels of mode {mode} have no fixed range; save it with 8 or 16 bits a channel"
    )


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LAB", "HSV", "YCbCr"])
def test_modes_without_a_file_format_become_rgb_too(mode):
    assert to_rgb(Image.new(mode, (2, 2))).mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_thin_pictures_pass(tmp_path, put, size):
    assert open_inside(tmp_path, put(saved(Image.new("RGB", size), "PNG"))).size == size


@pytest.mark.parametrize("size", [(1, 201), (5000, 1), (300_000, 1)])
@pytest.mark.parametrize("use", [open_inside, check_inside])
def test_pictures_that_are_too_long_are_refused_before_decoding(tmp_path, put, size, use):
    name = put(saved(Image.new("RGB", size), "PNG"))
    expected = f"{size[0]} x {size[1]} pixels: one side is more than 200 times the other; crop it"
    assert refusal(tmp_path, name, use) == expected


@pytest.mark.parametrize(
    "name", ["a b.png", "Ünïcödé.png", "😀.png", "日本/図.png", "n" * 200 + ".png"]
)
def test_unusual_names_are_found(tmp_path, put, photo, name):
    put(saved(photo, "PNG"), name)
    assert open_inside(tmp_path, name).size == photo.size


def test_backslashes_are_slashes(tmp_path, put, photo):
    put(saved(photo, "PNG"), "val2014/x.png")
    assert open_inside(tmp_path, "val2014\\x.png").size == photo.size


def test_a_typed_path_may_be_anywhere(tmp_path, put, photo, monkeypatch):
    put(saved(photo, "PNG"), "a/x.png")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("../a/x.png", str(tmp_path / "a" / "x.png"), "~/a/x.png", tmp_path / "a/x.png"):
        assert open_photo(path).tobytes() == photo.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file (0 bytes); copy or download it again"),
        (b"<!DOCTYPE html>", "not an image (starts with '<!DOCTYPE'; expected one of "),
        (png_header(20_000, 20_000), "400000000 pixels, more than the limit of 89478485"),
    ],
)
def test_a_typed_path_passes_the_same_checks(tmp_path, content, reason):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage) as error:
        open_photo(path)
    assert str(error.value).startswith(f"'{path}': {reason}")


def test_a_typed_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(BadImage, match=r"no\.jpg': no such file$"):
        open_photo(tmp_path / "no.jpg")
    with pytest.raises(BadImage, match="a URL; nothing is downloaded here"):
        open_photo("https://example.org/cat.jpg")


def test_a_refusal_can_be_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(BadImage("x.jpg", "is bad")))
    assert str(error) == "'x.jpg': is bad"


MANY = """
import resource, sys
from attrib.data.images import open_inside, check_inside
from attrib.data.images import BadImage
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
root = sys.argv[1]
kept = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(100):
    for name in ("good.png", "cut.jpg", "html.jpg", "bomb.png"):
        for use in (check_inside, open_inside):
            try:
                kept.append(use(root, name))
            except BadImage as error:
                kept.append(error)
print(len(kept), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 100)
if "leak" in sys.argv:
    from PIL import Image
    kept += [Image.open(f"{root}/good.png") for _ in range(100)]
"""


def test_no_file_stays_open_and_a_bomb_takes_no_memory(tmp_path, put, photo):
    put(saved(photo, "PNG"), "good.png")
    put(saved(photo, "JPEG")[:900], "cut.jpg")
    put(b"<html>", "html.jpg")
    put(png_header(20_000, 20_000), "bomb.png")
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "800 True\n"), done.stderr
    control = subprocess.run([*command, "leak"], capture_output=True, text=True, check=False)
    assert "Too many open files" in control.stderr
