"""Scenes written out: the folder loads to the same samples, and is made whole or not at all."""

import json
from typing import Any

import pytest
from easyedit_files import few_scenes, row
from PIL import Image

from attrib.data import EditData, EditRequest, load
from attrib.data.check import check
from attrib.data.scenes.export import export_folder
from attrib.errors import AttribError

PAIRS = [
    ("scenes-vqa", "train", "vqa-train"),
    ("scenes-vqa", "validation", "vqa-validation"),
    ("scenes-vqa", "test", "vqa-eval"),
    ("scenes-captions", "train", "caption-train"),
    ("scenes-captions", "validation", "caption-validation"),
    ("scenes-captions", "test", "caption-eval"),
]
PARTS = (
    "text_generality",
    "visual_generality",
    "text_locality",
    "visual_locality",
    "hard_locality",
)


def seen(request: EditRequest) -> tuple:
    image = request.image
    return (image and (image.size, image.tobytes()), request.prompt, request.target)


def contents(data: EditData) -> list[Any]:
    return [
        [seen(s.request), [[seen(r) for r in getattr(s, part)] for part in PARTS], s.meta]
        for s in data
    ]


@pytest.mark.parametrize(("name", "split", "written"), PAIRS)
def test_the_folder_loads_to_the_very_samples_of_memory(
    tmp_path, monkeypatch, name, split, written
):
    few = few_scenes(monkeypatch)
    made = export_folder(tmp_path / "out")
    assert made.rows[written] == few[split]
    here, there = load(name, split), load(tmp_path / "out", written)
    assert contents(there) == contents(here) and len(here) == few[split]
    assert contents(load(name, split, seed=1)) != contents(here)


def test_the_folder_is_sound_and_its_splits_are_disjoint(tmp_path, monkeypatch):
    few_scenes(monkeypatch)
    export_folder(tmp_path)
    report = check(tmp_path, tmp_path / "images")
    assert report.sound and not report.absent
    for shared in report.overlaps.values():
        assert shared["image"] == shared["(m_loc, m_loc_q)"] == shared["loc"] == 0
        assert shared["image as m_loc"] == shared["m_loc as image"] == 0
    assert load(tmp_path, "vqa-validation", disjoint=True).provenance["m_loc_removed"] == 0


def rows(task: str, split: str, seed: int) -> list[dict[str, Any]]:
    made = [row(i, alt=f"{task} {split} {seed}") for i in range(2)]
    made[0]["hard"] = [{"image": "h.png", "prompt": "p", "target": "t", "type": "other"}]
    return made


class Painter:
    """Draws pictures, counts them, and breaks down after a while if told so."""

    def __init__(self, breaks_after: int | None = None):
        self.drawn, self.breaks_after = [], breaks_after

    def __call__(self, name: str) -> Image.Image:
        if len(self.drawn) == self.breaks_after:
            raise KeyboardInterrupt
        self.drawn.append(name)
        return Image.new("RGB", (3, 2), (len(name), 0, 0))


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


NAMES = ["h.png", *(f"{place}.png" for place in ("rephrase/0", "rephrase/1"))]
NAMES += [f"val/{i}.png" for i in (0, 1, 100, 101)]


def test_every_picture_is_drawn_once(tmp_path):
    painter = Painter()
    made = export_folder(tmp_path, rows=rows, open_image=painter)
    assert sorted(painter.drawn) == sorted(NAMES)
    assert (made.written, made.kept) == (7, 0)
    assert sorted(files(tmp_path)) == sorted(
        [
            *(f"images/{name}" for name in NAMES),
            *(f"vqa/vqa_{part}.json" for part in ("train", "validation", "eval")),
            *(f"caption/caption_{part}_edit.json" for part in ("train", "validation", "eval")),
            "made.json",
        ]
    )
    assert json.loads((tmp_path / "vqa" / "vqa_eval.json").read_text()) == rows("vqa", "test", 0)


def test_made_again_nothing_is_drawn_and_nothing_changes(tmp_path):
    export_folder(tmp_path, rows=rows, open_image=Painter())
    before = files(tmp_path)
    painter = Painter()
    made = export_folder(tmp_path, rows=rows, open_image=painter)
    assert (painter.drawn, made.written, made.kept) == ([], 0, 7)
    assert files(tmp_path) == before


def test_two_folders_of_one_seed_are_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        export_folder(tmp_path / name, seed=seed, rows=rows, open_image=Painter())
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_what_was_interrupted_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export_folder(tmp_path / "a", rows=rows, open_image=Painter(breaks_after=3))
    assert len(files(tmp_path / "a")) == 4  # Three pictures and the note: no row file, no part.
    rest = Painter()
    export_folder(tmp_path / "a", rows=rows, open_image=rest)
    assert len(rest.drawn) == 4
    export_folder(tmp_path / "b", rows=rows, open_image=Painter())
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_folder_of_another_seed_is_not_mixed_with(tmp_path):
    export_folder(tmp_path, rows=rows, open_image=Painter())
    before = files(tmp_path)
    with pytest.raises(AttribError) as error:
        export_folder(tmp_path, seed=1, rows=rows, open_image=Painter())
    assert str(error.value) == (
        f"{tmp_path}: was made with another seed or version; give another folder or remove it"
    )
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AttribError, match=r"holds other files; give a new or empty folder$"):
        export_folder(tmp_path, rows=rows, open_image=Painter())
    assert list(files(tmp_path)) == ["thesis.txt"]
    with pytest.raises(AttribError, match=r"a file; give a new or empty folder$"):
        export_folder(tmp_path / "thesis.txt", rows=rows, open_image=Painter())
