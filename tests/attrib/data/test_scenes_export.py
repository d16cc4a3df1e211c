"""Exported scenes: the folder loads to the same samples, and files are written atomically."""

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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a handful of edits per split, what its export returned, and their number."""
    with pytest.MonkeyPatch.context() as patch:
        few = few_scenes(patch)
        folder = tmp_path_factory.mktemp("scenes")
        yield folder, export_folder(folder), few


def seen(request: EditRequest) -> tuple:
    image = request.image
    return (image and (image.size, image.tobytes()), request.prompt, request.target)


def contents(data: EditData) -> list[Any]:
    return [
        [seen(s.request), [[seen(r) for r in getattr(s, part)] for part in PARTS], s.meta]
        for s in data
    ]


@pytest.mark.parametrize(("name", "split", "written"), PAIRS)
def test_the_folder_loads_to_the_same_samples(exported, name, split, written):
    folder, result, few = exported
    assert result.rows[written] == few[split]
    here, there = load(name, split), load(folder, written)
    assert contents(there) == contents(here) and len(here) == few[split]
    assert contents(load(name, split, seed=1)) != contents(here)


def test_the_folder_is_sound_and_its_splits_are_disjoint(exported):
    folder, _, _ = exported
    report = check(folder, folder / "images")
    assert report.sound and not report.absent
    for shared in report.overlaps.values():
        assert shared["image"] == shared["(m_loc, m_loc_q)"] == shared["loc"] == 0
        assert shared["image as m_loc"] == shared["m_loc as image"] == 0
    assert load(folder, "vqa-validation", disjoint=True).provenance["m_loc_removed"] == 0


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


def export(monkeypatch, folder, painter=None, seed=0):
    monkeypatch.setattr("attrib.data.scenes.export.edit_rows", rows)
    monkeypatch.setattr("attrib.data.scenes.export.open_image", painter or Painter())
    return export_folder(folder, seed=seed)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


NAMES = ["h.png", *(f"{place}.png" for place in ("rephrase/0", "rephrase/1"))]
NAMES += [f"val/{i}.png" for i in (0, 1, 100, 101)]


def test_a_limit_is_of_each_split_and_draws_no_other_image(tmp_path, monkeypatch):
    monkeypatch.setattr("attrib.data.scenes.export.edit_rows", rows)
    monkeypatch.setattr("attrib.data.scenes.export.open_image", painter := Painter())
    made = export_folder(tmp_path, limit=1)
    assert set(made.rows.values()) == {1} and 0 < made.written == len(painter.drawn) < len(NAMES)
    with pytest.raises(AttribError, match="another seed, limit or version"):
        export_folder(tmp_path)


def test_every_image_is_drawn_once(tmp_path, monkeypatch):
    painter = Painter()
    made = export(monkeypatch, tmp_path, painter)
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


def test_a_second_export_changes_nothing(tmp_path, monkeypatch):
    export(monkeypatch, tmp_path)
    before = files(tmp_path)
    painter = Painter()
    made = export(monkeypatch, tmp_path, painter)
    assert (painter.drawn, made.written, made.kept) == ([], 0, 7)
    assert files(tmp_path) == before


def test_exports_of_one_seed_are_byte_identical(tmp_path, monkeypatch):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        export(monkeypatch, tmp_path / name, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_an_interrupted_export_is_resumed(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        export(monkeypatch, tmp_path / "a", Painter(breaks_after=3))
    assert len(files(tmp_path / "a")) == 4  # Three pictures and the note: no row file, no part.
    rest = Painter()
    export(monkeypatch, tmp_path / "a", rest)
    assert len(rest.drawn) == 4
    export(monkeypatch, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_folder_of_another_seed_is_refused(tmp_path, monkeypatch):
    export(monkeypatch, tmp_path)
    before = files(tmp_path)
    with pytest.raises(AttribError) as error:
        export(monkeypatch, tmp_path, seed=1)
    assert str(error.value) == (
        f"{tmp_path}: was made with another seed, limit or version; give another folder or "
        "remove it"
    )
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AttribError, match=r"holds other files; give a new or empty folder$"):
        export(monkeypatch, tmp_path)
    assert list(files(tmp_path)) == ["thesis.txt"]
    with pytest.raises(AttribError, match=r"a file; give a new or empty folder$"):
        export(monkeypatch, tmp_path / "thesis.txt")
