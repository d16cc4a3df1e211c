"""Kept pictures: decoded once, never stale, never changed by who got one, within a bound."""

import os

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from attrib.data import images, kept_pictures
from attrib.data.images import BadImage, open_inside, open_photo
from attrib.data.kept_pictures import SETTLED, KeptPictures
from attrib.data.scenes import open_image, parse_image_name, render

HOUR = 3_600_000_000_000  # nanoseconds


@pytest.fixture
def decoded(monkeypatch):
    """The names of what is decoded, with an empty store."""
    names, decode = [], images._decode

    def noted(image, name):
        names.append(name)
        return decode(image, name)

    monkeypatch.setattr(images, "KEPT", KeptPictures())
    monkeypatch.setattr(images, "_decode", noted)
    return names


def written(path, seed, age=HOUR):
    picture(40, 30, seed=seed).save(path, "PNG")
    then = path.stat().st_mtime_ns - age
    os.utime(path, ns=(then, then))
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_file_is_decoded_once_and_a_changed_one_is_seen(tmp_path, decoded):
    path = tmp_path / "a.png"
    first = written(path, 1)
    for _ in range(3):
        assert (np.asarray(open_inside(tmp_path, "a.png")) == first).all()
        assert (np.asarray(open_photo(path)) == first).all()
    assert len(decoded) == 1
    second = written(path, 2, age=HOUR // 2)
    assert (second != first).any()
    assert (np.asarray(open_inside(tmp_path, "a.png")) == second).all() and len(decoded) == 2
    path.unlink()
    with pytest.raises(BadImage, match="no such file"):
        open_inside(tmp_path, "a.png")


def test_a_file_that_was_just_written_is_decoded_each_time(tmp_path, decoded):
    path = tmp_path / "a.png"
    written(path, 1, age=0)
    before = path.stat().st_mtime_ns
    open_photo(path)
    second = written(path, 2, age=0)
    os.utime(path, ns=(before, before))  # as within one tick of the clock
    assert (np.asarray(open_photo(path)) == second).all() and len(decoded) == 2
    assert SETTLED < HOUR


@pytest.mark.usefixtures("decoded")
def test_each_caller_gets_a_copy_and_each_limit_of_pixels_is_checked(tmp_path):
    first = written(tmp_path / "a.png", 1)
    open_inside(tmp_path, "a.png").paste("red", (0, 0, 40, 30))
    assert (np.asarray(open_inside(tmp_path, "a.png")) == first).all()
    with pytest.raises(BadImage, match="more than the limit of 10"):
        open_inside(tmp_path, "a.png", max_pixels=10)


def test_no_more_bytes_are_kept_than_the_bound_and_the_oldest_go_first():
    kept, made = KeptPictures(limit=3 * 300), []

    def asked(name, side=10):
        return kept.get(name, lambda: (made.append(name), Image.new("RGB", (side, side)))[1])

    for name in ("a", "b", "c", "a", "d", "a", "b"):
        asked(name)
        assert kept.num_bytes <= kept.limit
    assert made == ["a", "b", "c", "d", "b"]
    asked("large", side=20)
    assert kept.num_bytes == 900 and made[-1] == "large"
    asked("large", side=20)
    assert made.count("large") == 2


def test_a_scene_is_what_is_drawn():
    name = "scenes/949_0.png"
    drawn = np.asarray(render(*parse_image_name(name))[0])
    open_image(name).paste("red", (0, 0, 96, 96))
    assert (np.asarray(open_image(name)) == drawn).all()
    assert kept_pictures.KEPT.num_bytes <= kept_pictures.LIMIT
