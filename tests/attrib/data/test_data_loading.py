"""Loading by name: every row read, bad ones quarantined, files refused in one line."""

import json

import pytest
from easyedit_files import FILES, few_scenes, outside, real_files, row, without, write_folder
from PIL import Image

import attrib.data
from attrib.data import Quarantined, load, sources
from attrib.data.easyedit import IMAGES
from attrib.data.scenes import open_image
from attrib.data.scenes.edits import edit_rows
from attrib.errors import AttribError, RowError, SetupError
from attrib.runs.collected import should_retry


def refused(error=AttribError, *args, **options) -> str:
    with pytest.raises(error) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", FILES)
def test_every_row_of_every_file_is_read(tmp_path, split):
    rows = [row(i) for i in range(5)]
    data = load(write_folder(tmp_path, **{split: rows}), split)
    assert [s.id for s in data] == [f"{split}/{i}" for i in range(5)]
    assert not data.quarantined
    suffix = " The answer is:" if split.startswith("vqa") else ""
    for i, s in enumerate(data):
        assert s.request.prompt == f"What is number {i}?{suffix}"
        assert s.request.image is not None
        assert s.request.image.getcolors() == [(12, (i, 2, 3))]


BAD = {
    "missing key": (without(row(), "loc_ans"), "loc_ans", "is missing"),
    "empty target": (row(alt=""), "alt", "is empty"),
    "empty prompt": (row(src=" "), "src", "is empty"),
    "number": (row(m_loc_a=4), "m_loc_a", "is a number, not text"),
    "no object": ([], "row", "is a list, not an object with the eleven fields"),
    "no picture": (row(image="no.png"), "image", "'no.png': no such file under {images}"),
    "second of two": (
        row(image=["val/1.png", "no.png"]),
        "image[1]",
        "'no.png': no such file under {images}",
    ),
    "second climbs": (
        row(m_loc=["val/1.png", "../x.png"], image="val/1.png"),
        "m_loc[1]",
        "'../x.png': leads out of the image root with '..'",
    ),
    "URL": (
        row(image="http://x.org/a.jpg"),
        "image",
        "'http://x.org/a.jpg': a URL; nothing is downloaded here: fetch the file and give its path",
    ),
    "absolute": (
        row(image="/etc/passwd"),
        "image",
        "'/etc/passwd': an absolute path; give it relative to the image root",
    ),
    "climbing": (
        row(image="../x.png"),
        "image",
        "'../x.png': leads out of the image root with '..'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_quarantined_and_the_others_stay(tmp_path, name):
    wrong, field, reason = BAD[name]
    root = write_folder(tmp_path, vqa_train=[row(0), wrong, row(2)])
    data = load(root, "vqa-train", need=IMAGES)
    assert [s.id for s in data] == ["vqa-train/0", "vqa-train/2"]
    (record,) = data.quarantined
    file = str(root / "vqa" / "vqa_train.json")
    assert (record.file, record.row, record.field) == (file, 1, field)
    assert record.reason == reason.format(images=root / "images")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file (0 bytes); copy or download it again"),
        (b"<html>no</html>", "not an image (starts with '<html'"),
    ],
)
def test_a_broken_image_quarantines_its_row(tmp_path, content, reason):
    root = write_folder(tmp_path, vqa_train=[row(0), row(1)])
    (root / "images" / "val" / "1.png").write_bytes(content)
    data = load(root, "vqa-train")
    assert [s.id for s in data] == ["vqa-train/0"]
    assert data.quarantined[0].reason.startswith(f"'val/1.png': {reason}")


def test_a_truncated_image_is_named_on_access(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0), row(1)])
    path = root / "images" / "val" / "1.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    data = load(root, "vqa-train")
    assert len(data) == 2 and data[0].request.image is not None
    with pytest.raises(RowError) as error:
        _ = data[1].request.image
    assert (error.value.row, error.value.field) == (1, "image")
    file = root / "vqa" / "vqa_train.json"
    assert str(error.value).startswith(f"{file}: row 1: image: 'val/1.png': truncated or damaged (")


def test_a_second_image_is_named_on_access_and_tried_again_when_it_is_repaired(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0), row(1, image=["val/0.png", "val/1.png"])])
    path = root / "images" / "val" / "1.png"
    whole = path.read_bytes()
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    sample = load(root, "vqa-train")[1]
    with pytest.raises(RowError, match=r"row 1: image\[1\]: 'val/1.png': truncated") as error:
        _ = sample.request.image
    record = Quarantined.from_error(error.value)
    assert record.field == "image[1]" and not should_retry(sample, record)
    path.write_bytes(whole)
    assert should_retry(sample, record) and len(sample.request.images) == 2


def test_rows_need_the_images_that_the_caller_needs(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(i) for i in range(4)])
    (root / "images" / "rephrase" / "1.png").unlink()
    (root / "images" / "val" / "102.png").unlink()
    assert len(load(root, "vqa-train")) == 4
    data = load(root, "vqa-train", need=("image", "image_rephrase", "m_loc"))
    assert [s.id for s in data] == ["vqa-train/0", "vqa-train/3"]
    assert [(q.row, q.field) for q in data.quarantined] == [(1, "image_rephrase"), (2, "m_loc")]
    assert len(load(root, "vqa-train", need=())) == 4
    message = refused(AttribError, root, "vqa-train", need=("photo",))
    assert message == (
        "need=['photo']: no such image; choose from ['image', 'image_rephrase', 'm_loc']"
    )


def test_the_limit_counts_rows_read(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0), row(1, alt=""), row(2), row(3)])
    data = load(root, "vqa-train", limit=3)
    assert [s.id for s in data] == ["vqa-train/0", "vqa-train/2"]
    assert (data.provenance["rows_read"], data.provenance["rows_quarantined"]) == (3, 1)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_reads_nothing_is_refused(tmp_path, limit):
    root = write_folder(tmp_path, vqa_train=[row(i) for i in range(4)])
    assert refused(AttribError, root, "vqa-train", limit=limit) == (
        f"limit={limit} reads nothing of {root / 'vqa' / 'vqa_train.json'}; "
        "give 1 or more, or no limit"
    )


def test_a_limit_beyond_the_end_reads_all_rows(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(i) for i in range(4)])
    for limit in (4, 5, None):
        data = load(root, "vqa-train", limit=limit)
        assert len(data) == data.provenance["rows_read"] == 4


def test_an_empty_file_of_rows_is_refused(tmp_path):
    root = write_folder(tmp_path, vqa_train=[])
    path = root / "vqa" / "vqa_train.json"
    assert refused(AttribError, root, "vqa-train") == f"{path}: holds no rows"


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_json_is_refused_with_line_and_offset(tmp_path, keep):
    root = write_folder(tmp_path, vqa_train=[row(i) for i in range(4)])
    path = root / "vqa" / "vqa_train.json"
    text = json.dumps([row(i) for i in range(4)], indent=1)
    text = text[: int(len(text) * keep)]
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError) as truth:
        json.loads(text)
    line, column, offset = truth.value.lineno, truth.value.colno, truth.value.pos
    message = refused(SetupError, root, "vqa-train")
    assert message.startswith(
        f"{path}: invalid JSON at line {line}, column {column} (character {offset}): "
    )
    assert message.endswith("; truncated: it does not end with ']'; copy or download it again")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"src": 1,}]', "invalid JSON at line 1, column "),
        (b"", "invalid JSON at line 1, column 1 (character 0): Expecting value"),
        (b'["\xff\xfe"]', "invalid JSON ('utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "invalid JSON (maximum recursion depth"),
        (b'{"data": [], "b": 1}', "holds an object with the keys ['data', 'b']; expected a list"),
        (b"3", "holds a number; expected a list of rows"),
    ],
)
def test_a_file_that_is_not_a_list_of_rows_is_refused(tmp_path, content, expected):
    root = write_folder(tmp_path, vqa_train=[row()])
    path = root / "vqa" / "vqa_train.json"
    path.write_bytes(content)
    assert refused(SetupError, root, "vqa-train").startswith(f"{path}: {expected}")


def test_a_wrong_name_is_answered_with_the_existing_ones(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row()], caption_train=[row()])
    assert refused(AttribError, "no-such", "train") == (
        "no data 'no-such'; choose from scenes-vqa, scenes-captions, or give a folder with "
        "vqa/vqa_train.json, caption/caption_train_edit.json or another benchmark's files in it, "
        "or a table of your own (.csv, .tsv, .jsonl, .ndjson, .json, .parquet)"
    )
    there = f"{root} has vqa-train, caption-train"
    assert refused(AttribError, root, "train") == f"no split 'train'; {there}"
    for nothing in ("", None):
        assert refused(AttribError, root, nothing) == f"give a split: {there}"
    missing = root / "vqa" / "vqa_eval.json"
    assert refused(SetupError, root, "vqa-eval") == f"{missing}: no such file; {there}"
    (tmp_path / "empty").mkdir()
    message = refused(SetupError, tmp_path / "empty", "vqa-eval")
    assert message.endswith("has none of the splits")
    assert refused(AttribError, root, "vqa-train", image_root=root / "no") == (
        f"image root {root / 'no'}: no such folder; give the one of the images"
    )


def test_images_come_from_the_image_root(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row()])
    moved = (root / "images").rename(tmp_path / "photos")
    assert len(load(root, "vqa-train")) == 0
    assert len(load(root, "vqa-train", image_root=moved)) == 1


def test_a_link_out_of_the_image_root_quarantines_the_row(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0), row(1)])
    outside = (root / "images" / "val" / "1.png").rename(tmp_path / "1.png")
    (root / "images" / "val" / "1.png").symlink_to(outside)
    (record,) = load(root, "vqa-train").quarantined
    images = root / "images"
    assert record.reason == f"'val/1.png': a link that leads out of the image root {images}"


def test_pixels_have_a_limit_that_the_caller_may_raise(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0)])
    data = load(root, "vqa-train", max_pixels=11)
    assert data.quarantined[0].reason.startswith("'val/0.png': 12 pixels, more than the limit")
    assert len(load(root, "vqa-train", max_pixels=12)) == 1


def test_cleaning_is_an_option(tmp_path):
    root = write_folder(tmp_path, caption_train=[row(rephrase='"an image of"', alt="A cat. ")])
    raw, clean = load(root, "caption-train"), load(root, "caption-train", clean=True)
    assert (raw[0].request.target, clean[0].request.target) == ("A cat. ", "A cat.")
    assert raw[0].text_generality[0].prompt == '"an image of"'
    assert clean[0].text_generality[0].prompt == "an image of"


def test_disjoint_removes_the_locality_items_of_the_other_split(tmp_path):
    same = row(1)
    other_question = row(2) | {"m_loc_q": "Another?"}
    root = write_folder(
        tmp_path,
        vqa_train=[row(0), same, row(2), row(3)],
        vqa_eval=[row(9), {**row(8), **{k: same[k] for k in ("m_loc", "m_loc_q")}}, other_question],
        caption_eval=[row(3)],
    )
    whole = load(root, "vqa-train")
    assert [len(s.visual_locality) for s in whole] == [1, 1, 1, 1]
    assert whole.provenance["m_loc_removed"] == 0
    data = load(root, "vqa-train", disjoint=True)
    assert [len(s.visual_locality) for s in data] == [1, 0, 1, 1]
    assert data.provenance["m_loc_removed"] == 1
    assert [s.id for s in data] == [s.id for s in whole]
    assert data[1].request.target == "cat 1" and data[1].text_locality
    back = load(root, "vqa-eval", disjoint=True, need=())
    assert [len(s.visual_locality) for s in back] == [1, 0, 1]


def test_disjoint_counts_rows_of_the_file_when_some_are_quarantined(tmp_path):
    root = write_folder(
        tmp_path, vqa_train=[row(0, alt=""), row(1), row(2)], vqa_eval=[row(2), "no row"]
    )
    data = load(root, "vqa-train", disjoint=True)
    assert [len(s.visual_locality) for s in data] == [1, 0]


def test_disjoint_needs_the_other_file(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row()])
    assert refused(SetupError, root, "vqa-train", disjoint=True) == (
        f"{root / 'vqa' / 'vqa_eval.json'}: no such file; disjoint=True compares vqa-train "
        "with it: add it, or leave disjoint out"
    )


def test_the_provenance_identifies_the_file(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0)])
    first = load(root, "vqa-train").provenance
    assert json.loads(json.dumps(first)) == dict(first)
    assert load(root, "vqa-train").provenance == first
    write_folder(tmp_path, vqa_train=[row(0, alt="dog")])
    assert load(root, "vqa-train").provenance["sha256"] != first["sha256"]


def test_an_image_of_many_rows_is_checked_once(tmp_path, monkeypatch):
    root = write_folder(tmp_path, vqa_train=[row(0) for _ in range(20)])
    asked = []
    check = sources.check_inside

    def count(root, name, **options):
        asked.append(name)
        return check(root, name, **options)

    monkeypatch.setattr(sources, "check_inside", count)
    assert len(load(root, "vqa-train")) == 20
    assert asked == ["val/0.png"]


class TestScenes:
    @pytest.fixture(autouse=True)
    def few(self, monkeypatch):
        few_scenes(monkeypatch)

    def test_they_load_by_name(self):
        data = load("scenes-vqa", split="test")
        assert [s.id for s in data] == [f"scenes-vqa-test/{i}" for i in range(3)]
        for sample, drawn in zip(data, edit_rows("vqa", "test"), strict=True):
            assert sample.request.prompt == drawn["src"] + " The answer is:"
            assert sample.request.target == drawn["alt"]
            assert sample.request.image is not None
            assert sample.request.image.tobytes() == open_image(drawn["image"]).tobytes()
            assert sample.meta["kind"] == drawn["kind"]
            assert sample.meta["hard_types"] == [item["type"] for item in drawn["hard"]]
            prompts = [request.prompt for request in sample.hard_locality]
            assert prompts == [item["prompt"] + " The answer is:" for item in drawn["hard"]]

    def test_caption_prompts_have_no_suffix(self):
        data = load("scenes-captions", "train", limit=2)
        rows = edit_rows("captions", "train")
        assert [s.request.prompt for s in data] == [row["src"] for row in rows[:2]]
        assert data[0].hard_locality[0].prompt == rows[0]["hard"][0]["prompt"]

    def test_the_seed_changes_them(self):
        one, two = (load("scenes-vqa", "test", seed=seed) for seed in (0, 1))
        assert one[0].request.image.tobytes() != two[0].request.image.tobytes()
        assert (one.provenance["seed"], two.provenance["seed"]) == (0, 1)
        assert one.provenance["sha256"] != two.provenance["sha256"]

    def test_their_images_always_exist(self):
        assert len(load("scenes-vqa", "test", need=("image", "image_rephrase", "m_loc"))) == 3

    def test_their_splits_share_no_locality_item(self):
        data = load("scenes-vqa", "test", disjoint=True)
        assert data.provenance["m_loc_removed"] == 0
        assert all(s.visual_locality for s in data)

    def test_unknown_splits_and_image_roots_are_refused(self):
        assert refused(AttribError, "scenes-vqa", "eval") == (
            "scenes-vqa has no split 'eval'; choose from train, validation, test"
        )
        assert refused(AttribError, "scenes-vqa") == (
            "scenes-vqa needs a split: one of train, validation, test"
        )
        assert refused(AttribError, "scenes-vqa", "test", image_root=".") == (
            "scenes-vqa draws its images; leave the image root out"
        )


REAL = """
import json, sys
from attrib.data import load
folder, found = sys.argv[1], {}
for split in ("vqa-train", "caption-train"):
    raw, clean = (load(folder, split, need=(), clean=clean) for clean in (False, True))
    first = [[d[i].text_generality[0].prompt for i in range(len(d))] for d in (raw, clean)]
    found[split] = {
        "samples": len(raw),
        "quarantined": len(raw.quarantined),
        "empty": sum(not (s.request.prompt and s.request.target) for s in raw),
        "changed": sum(a != b for a, b in zip(*first)),
        "quirks": sum(p.startswith('"') or "\\n" in p or "ewritten" in p for p in first[1]),
        "white": sum(s.request.target != s.request.target.strip() for s in clean),
        "white before": sum(s.request.target != s.request.target.strip() for s in raw),
    }
print(json.dumps(found))
"""


def test_the_real_files_load_completely_and_cleaning_finds_every_artefact():
    found = outside(REAL, real_files())
    vqa, caption = found["vqa-train"], found["caption-train"]
    assert (vqa["samples"], caption["samples"]) == (6345, 2849)
    for split in found.values():
        assert not split["quarantined"] and not split["empty"]
        assert not split["quirks"] and not split["white"]
    assert vqa["changed"] == 1707  # 1686 in quotes, a bare dump, 20 bare "Rewritten question:".
    assert (caption["changed"], caption["white before"]) == (0, 413)


def test_the_real_rows_whose_photo_is_there_are_used():
    folder = real_files()
    data = load(folder, "vqa-train", image_root=folder / "images", limit=100)
    assert data.provenance["rows_read"] == len(data) + len(data.quarantined) == 100
    used = {s.id: s for s in data}
    assert used["vqa-train/94"].request.target == "yellow"
    assert used["vqa-train/94"].request.image.size == (426, 640)
    assert all(q.field == "image" and "no such file" in q.reason for q in data.quarantined)


def test_the_public_names_are_there():
    assert set(attrib.data.__all__) <= set(dir(attrib.data))
