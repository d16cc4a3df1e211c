"""The check of a folder: planted oddities are counted, and the real files are as published."""

import json
from dataclasses import asdict

import pytest
from easyedit_files import outside, real_files, row, without, write_folder
from PIL import Image

from attrib.data.check import QUALITY_FLAGS, check
from attrib.data.overlap import overlap
from attrib.errors import AttribError, SetupError

REAL = """
import json, sys
from dataclasses import asdict
from attrib.data.check import check
report = check(sys.argv[1])
print(json.dumps([asdict(report), report.sound, report.to_markdown()]))
"""


@pytest.fixture(scope="module")
def real():
    return outside(REAL, real_files())


UNIQUE = {
    "src": (5398, 1),
    "rephrase": (5225, 19),
    "alt": (2596, 2849),
    "image": (3363, 2849),
    "image_rephrase": (6345, 2849),
    "loc": (6345, 2849),
    "(m_loc, m_loc_q)": (5045, 2849),
    "real images": (7987, 5506),
}
FLAGGED = {
    "rephrase starts with a quote": (1686, 0),
    "rephrase has line breaks": (15, 0),
    "rephrase is a refusal": (1, 0),
    "rephrase equals src": (118, 0),
    "yes/no answer, but rephrase asks what, how, where or which": (478, 0),
    "pred equals alt": (6, 0),
    "alt has outer white space": (0, 413),
    "alt ends with a blank": (0, 402),
    "alt ends with a line break": (0, 9),
    "alt starts with white space": (0, 2),
    "alt has double blanks inside": (0, 32),
    "loc_ans has line breaks": (5, 3),
    "loc_ans is not ASCII": (198, 89),
    "m_loc is the edit image": (0, 0),
    "m_loc is null": (0, 0),
}


def test_the_real_training_files_have_the_published_counts(real):
    report, sound, _ = real
    vqa, caption = report["files"]["vqa-train"], report["files"]["caption-train"]
    assert sound
    assert (vqa["rows"], caption["rows"]) == (6345, 2849)
    assert (vqa["malformed"], caption["malformed"]) == ([], [])
    for name, counts in UNIQUE.items():
        assert (vqa["unique"][name], caption["unique"][name]) == counts, name
    assert {n: (vqa["quality_flags"][n], caption["quality_flags"][n]) for n in FLAGGED} == FLAGGED


def test_the_real_words_and_answers_are_as_published(real):
    files = real[0]["files"]
    vqa, caption = files["vqa-train"], files["caption-train"]

    def words(file, field):
        found = file["words"][field]
        return round(found["mean"], 1), found["min"], found["max"]

    assert words(vqa, "src")[0] == 6.5
    assert words(vqa, "rephrase")[0] == 8.5
    assert words(vqa, "alt") == (1.3, 1, 14)
    assert words(caption, "alt") == (10.4, 7, 33)
    assert words(vqa, "loc_ans") == (3.9, 1, 212)
    assert words(caption, "loc_ans") == (3.9, 1, 97)
    assert words(vqa, "m_loc_a")[0] == 1.3
    assert vqa["answers"]["yes/no"] == 837
    assert vqa["answers"]["digits"] == 1129
    assert vqa["answers"]["top"][:4] == [["yes", 528], ["no", 309], ["0", 158], ["1", 155]]


def test_the_real_repeats_and_copies_are_as_published(real):
    report = real[0]
    assert report["files"]["vqa-train"]["repeats"] == {
        "whole rows": 0,
        "(image, src) groups": 2,
        "(image, src) groups with different alt": 0,
        "loc repeated": 0,
        "(loc, loc_ans) repeated": 0,
        "(m_loc, m_loc_q) repeated": 1300,
        "(m_loc, m_loc_q) repeated with the same m_loc_a": 583,
        "(m_loc, m_loc_q) period": 5045,
    }
    assert report["copies"] == [
        "loc of caption-train equals that of the first 2849 rows of vqa-train",
        "(m_loc, m_loc_q) of caption-train equals that of the first 2849 rows of vqa-train",
    ]


def test_the_real_report_reads_as_a_table(real):
    text = real[2]
    assert "|        6345 |          2849 |" in text
    assert "most frequent answers of vqa-train: yes 528, no 309, 0 158, 1 155" in text
    assert "most frequent answers of caption-train" not in text  # Every caption stands once.


ODD = {
    "rephrase starts with a quote": {"rephrase": '"So?"'},
    "rephrase has line breaks": {"rephrase": "So?\nOr so?"},
    "rephrase is a refusal": {"rephrase": "I'm sorry, but I cannot."},
    "rephrase equals src": {"src": "Is it?", "rephrase": "is it?"},
    "yes/no answer, but rephrase asks what, how, where or which": {
        "alt": "Yes",
        "rephrase": '"Which one is it?"',
    },
    "src or rephrase ends with a blank": {"src": "a photo of "},
    "pred equals alt": {"pred": "Cat", "alt": "cat"},
    "alt has outer white space": {"alt": "\tcat\t"},
    "alt ends with a blank": {"alt": "cat "},
    "alt ends with a line break": {"alt": "cat\n"},
    "alt starts with white space": {"alt": " cat"},
    "alt has double blanks inside": {"alt": "a  cat"},
    "loc_ans has line breaks": {"loc_ans": "a\nb"},
    "loc_ans is not ASCII": {"loc_ans": "José"},
    "m_loc is the edit image": {"m_loc": "val/0.png"},
    "m_loc is null": {"m_loc": None},
}


@pytest.mark.parametrize("flag", QUALITY_FLAGS)
def test_a_planted_oddity_is_flagged_and_a_sound_row_is_not(flag):
    assert QUALITY_FLAGS[flag](row(**ODD[flag]))
    assert not QUALITY_FLAGS[flag](row())
    assert not QUALITY_FLAGS[flag](row(alt="yes", rephrase="Is it so?"))


def test_malformed_rows_are_named_and_the_others_counted(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row(0), without(row(1), "alt"), "x", row(3)])
    report = check(root)
    file = report.files["vqa-train"]
    assert (file["rows"], file["unique"]["src"]) == (4, 2)
    path = str(root / "vqa" / "vqa_train.json")
    assert file["malformed"][0] == {"file": path, "row": 1, "field": "alt", "reason": "is missing"}
    assert not report.sound
    text = report.to_markdown(shown=1)
    assert f"Malformed rows of {path}: 2\n- row 1: alt: is missing\n- and 1 more" in text


def test_a_file_that_is_not_json_is_named_and_the_others_are_checked(tmp_path):
    root = write_folder(tmp_path, vqa_train=[row()], caption_train=[row()])
    path = root / "vqa" / "vqa_train.json"
    path.write_text(path.read_text()[:50])
    report = check(root)
    assert list(report.files) == ["caption-train"] and not report.sound
    assert report.unreadable["vqa-train"].startswith(f"{path}: invalid JSON at line 1, column ")
    assert f"- unreadable: {path}: invalid JSON" in report.to_markdown()


def test_folders_without_such_files_are_refused(tmp_path):
    with pytest.raises(SetupError, match=r"holds none of vqa/vqa_train\.json, "):
        check(tmp_path)
    with pytest.raises(AttribError, match="no/such: no such folder"):
        check("no/such")
    with pytest.raises(AttribError, match="no/images: no such folder"):
        check(tmp_path, "no/images")


def test_an_empty_file_has_no_numbers_and_no_error(tmp_path):
    report = check(write_folder(tmp_path, vqa_train=[]))
    assert report.files["vqa-train"]["rows"] == 0
    assert "| rows" in report.to_markdown()


def test_what_two_splits_share_is_counted_in_rows():
    train = [row(0), row(1), row(2)]
    other = [
        row(0),  # the same row, in the same place
        row(7, image="val/1.png", m_loc="val/2.png"),  # an image of train; its m_loc, edited there
        row(8, image="val/102.png", alt="cat 2"),  # an image that is a locality image there
        {**row(9), **{k: row(1)[k] for k in ("m_loc", "m_loc_q")}},  # asked with another answer
        row(10, src="What is number 2?"),
    ]
    assert overlap(train, other) == {
        "rows": 5,
        "src": 2,
        "rephrase": 1,
        "alt": 2,
        "image": 2,
        "image_rephrase": 1,
        "loc": 1,
        "(image, src)": 1,
        "(src, alt)": 1,
        "(m_loc, m_loc_q)": 2,
        "(m_loc, m_loc_q, m_loc_a)": 1,
        "(m_loc, m_loc_q, m_loc_a) in the same row": 1,
        "image, unique": 2,
        "image as m_loc": 1,
        "m_loc as image": 1,
    }


def test_overlaps_are_reported_for_every_pair_of_files_of_a_task(tmp_path):
    root = write_folder(
        tmp_path, vqa_train=[row(0), row(1)], vqa_eval=[row(1)], caption_eval=[row(0)]
    )
    report = check(root)
    assert list(report.overlaps) == ["vqa-eval in vqa-train"]
    assert report.overlaps["vqa-eval in vqa-train"]["image"] == 1
    assert report.copies == [
        "loc of caption-eval equals that of the first 1 rows of vqa-train",
        "(m_loc, m_loc_q) of caption-eval equals that of the first 1 rows of vqa-train",
    ]
    assert report.absent == ["vqa-validation", "caption-train", "caption-validation"]
    assert report.totals == {"rows": 4, "real images": 4, "image_rephrase": 2}
    text = report.to_markdown()
    assert "vqa-eval in vqa-train" in text
    assert "Missing splits: vqa-validation, caption-train, caption-validation." in text


def test_missing_and_broken_pictures_are_found_when_a_root_is_given(tmp_path):
    several = row(1, image=["val/0.png", "val/1.png"])
    root = write_folder(tmp_path, vqa_train=[row(0), several])
    images = root / "images"
    assert check(root).images is None
    report = check(root, images)
    assert report.images == {"needed": 6, "missing": [], "broken": {}} and report.sound
    (images / "val" / "0.png").unlink()
    (images / "val" / "1.png").write_bytes(b"")
    cut = images / "rephrase" / "0.png"
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    report = check(root, images)
    assert report.images is not None and not report.sound
    assert report.images["missing"] == ["val/0.png"]
    assert sorted(report.images["broken"]) == ["rephrase/0.png", "val/1.png"]
    assert report.images["broken"]["val/1.png"].startswith("empty file (0 bytes)")
    text = report.to_markdown()
    assert "Images: 6 needed, 1 missing, 2 broken\n- missing: val/0.png\n" in text
    header = check(root, images, pixels="header").images
    assert header is not None and list(header["broken"]) == ["val/1.png"]


def test_tables_escape_the_content_of_rows(tmp_path):
    nasty = "a|b <script>alert(1)</script>\nc"
    root = write_folder(tmp_path, vqa_train=[row(0, alt=nasty), row(1, alt=nasty)])
    text = check(root).to_markdown()
    assert "a\\|b &lt;script>alert(1)&lt;/script> c 2" in text
    assert "<script" not in text


def test_the_report_is_serialisable(tmp_path):
    report = check(write_folder(tmp_path, vqa_train=[row(0), row(1, alt="")], vqa_eval=[row(0)]))
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["folder"] == report.folder
