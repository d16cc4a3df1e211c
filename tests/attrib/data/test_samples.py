"""Requests open their image on access, samples are slices of data, bad rows keep their names."""

import base64
import io
import json
import pickle
import re
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from attrib.data import BadImage, EditData, EditRequest, EditSample, Quarantined
from attrib.errors import AttribError, RowError


def sample(i: int) -> EditSample:
    return EditSample(f"s/{i}", EditRequest(None, f"What is {i}?", "it"))


def data(n: int = 5, bad: int = 0) -> EditData:
    rows = [Quarantined("f.json", i, "alt", "is empty") for i in range(bad)]
    return EditData("d", "train", [sample(i) for i in range(n)], rows, {"seed": 0})


def test_an_image_is_opened_at_every_access_and_not_before():
    opened = []

    def source() -> Image.Image:
        opened.append(1)
        return Image.new("RGB", (2, 2))

    request = EditRequest(source, "What?", "cat")
    assert repr(request) == "EditRequest(image=<opened on access>, prompt='What?', target='cat')"
    assert not opened
    assert request.image is not request.image
    assert len(opened) == 2


def test_reprs_have_ten_lines_at_most_and_open_no_image():
    def source() -> Image.Image:
        raise AssertionError("opened")

    long = EditRequest(source, "What <is> it?\n" * 50, "cat")
    one = EditSample("s/0", long, text_generality=[long] * 3, meta={"row": 3, "x": "y" * 999})
    many = EditData("d", "train", [one] * 20, [Quarantined("f.json", 1, "alt", "is empty")])
    for value in (long, one, many):
        lines = repr(value).splitlines()
        assert len(lines) <= 10 and max(map(len, lines)) < 250
    assert repr(one).splitlines()[1].endswith("'cat' (and 2 more)")
    assert "'cat'" in repr(one) and "hard_locality: none" in repr(one)
    head, *rows, rest = repr(many).splitlines()
    assert head == "EditData('d', split='train'): 20 samples, 1 quarantined"
    assert all(line.startswith("  s/0: ") for line in rows) and rest == "  and 15 more"
    assert "&lt;is&gt;" in many._repr_html_() and "<is>" not in many._repr_html_()


def test_in_a_notebook_a_sample_shows_its_image_and_escapes_its_text():
    image = Image.effect_noise((900, 600), 40).convert("RGB")
    shown = EditSample("s/0", EditRequest(image, "Is it <b>?", "yes"))._repr_html_()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(data)))
    assert thumbnail.size == (128, 85) and image.size == (900, 600)
    assert "Is it &lt;b&gt;?" in shown and "<b>" not in shown
    assert "<img" not in EditRequest(None, "Who?", "me")._repr_html_()
    missing = EditRequest(Path("no/<such>.jpg"), "a", "b")._repr_html_()
    assert "no such file" in missing and "<such>" not in missing


def test_a_request_takes_an_image_a_path_or_nothing(tmp_path):
    picture = Image.new("RGB", (4, 3), (1, 2, 3))
    picture.save(tmp_path / "x.png")
    assert EditRequest(None, "a", "b").image is None
    assert EditRequest(picture, "a", "b").image is picture
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        image = EditRequest(image=path, prompt="a", target="b").image
        assert image is not None and image.tobytes() == picture.tobytes()


def test_a_request_takes_several_images(tmp_path):
    picture = Image.new("RGB", (4, 3), (1, 2, 3))
    picture.save(tmp_path / "x.png")
    request = EditRequest([picture, tmp_path / "x.png", lambda: picture], "a", "b")
    assert [image.tobytes() for image in request.image] == 3 * [picture.tobytes()]
    assert request.images == request.image
    assert repr(request).startswith("EditRequest(image=[<4x3 RGB>, <opened on access>, <opened")
    assert request._repr_html_().count("<img") == 3
    again = EditRequest(request.source, "a", "b")  # as code that changes a prompt does
    assert len(again.images) == 3
    assert EditRequest([picture], "a", "b").image is picture
    assert EditRequest([], "a", "b").image is None
    with pytest.raises(AttribError, match=r"image\[1\]: .*no/such\.jpg': no such file"):
        _ = EditRequest([picture, "no/such.jpg"], "a", "b").image


def test_a_path_is_checked_on_access():
    request = EditRequest(Path("no/such.jpg"), "a", "b")
    with pytest.raises(BadImage, match=r"'no/such\.jpg': no such file"):
        _ = request.image


def test_an_image_is_rgb_wherever_it_comes_from():
    clear = Image.new("LA", (2, 2), (0, 0))
    for source in (clear, lambda: clear):
        image = EditRequest(source, "a", "b").image
        assert image is not None and image.getcolors() == [(4, (255, 255, 255))]


def test_requests_and_samples_are_immutable():
    request = EditRequest(None, "a", "b")
    for name in ("prompt", "target", "image", "source"):
        with pytest.raises((FrozenInstanceError, AttributeError)):
            setattr(request, name, "new")
    with pytest.raises(FrozenInstanceError):
        sample(0).id = "new"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_repr_of_a_request_shows_the_image_and_not_its_pixels():
    request = EditRequest(Image.new("L", (640, 480)), "a", "b")
    assert repr(request) == "EditRequest(image=<640x480 L>, prompt='a', target='b')"
    assert "None" in repr(EditRequest(None, "a", "b"))


def test_requests_can_be_pickled():
    source = partial(Image.new, "RGB", (2, 2))
    there = pickle.loads(pickle.dumps(EditRequest(source, "a", "b")))
    assert there.prompt == "a" and there.image.size == (2, 2)


def test_data_is_a_sequence():
    some = data()
    assert len(some) == 5 and [s.id for s in some] == [f"s/{i}" for i in range(5)]
    assert some[-1].id == "s/4" and some.samples[2] in some
    with pytest.raises(IndexError):
        some[5]


def test_a_slice_is_data_that_keeps_its_origin():
    part = data(bad=2)[1:3]
    assert isinstance(part, EditData) and [s.id for s in part] == ["s/1", "s/2"]
    assert (part.name, part.split, len(part.quarantined)) == ("d", "train", 2)
    assert part.provenance == {"seed": 0}


def test_the_summary_is_short_and_names_the_first_rows():
    assert data(bad=0).summary() == "d train: 5 samples, 0 rows quarantined"
    assert data(bad=5).summary(shown=2).splitlines() == [
        "d train: 5 samples, 5 rows quarantined",
        "  f.json: row 0: alt: is empty",
        "  f.json: row 1: alt: is empty",
        "  and 3 more",
    ]
    assert "more" not in data(bad=3).summary(shown=3)


def test_every_quarantined_row_is_in_the_file(tmp_path):
    path = data(bad=50).save_quarantined(tmp_path / "bad.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 50
    assert rows[7] == {"file": "f.json", "row": 7, "field": "alt", "reason": "is empty"}


def test_a_bad_row_is_recorded_with_its_reason():
    error = RowError("'x.jpg': no such file", file="f.json", row=3, field="image")
    record = Quarantined.from_error(error)
    assert record == Quarantined("f.json", 3, "image", "'x.jpg': no such file")
    assert str(record) == str(error) == "f.json: row 3: image: 'x.jpg': no such file"
