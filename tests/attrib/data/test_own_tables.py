"""A table of one's own is read alike from every kind of file; what is broken in it has a name."""

import json
import logging

import pyarrow as pa
import pytest
from own_tables import (
    NAMES,
    ROWS,
    encoded,
    pictures,
    records,
    write_csv,
    write_json,
    write_lines,
    write_parquet,
    write_saved,
    write_shards,
)

from attrib.data import load
from attrib.data.check_table import check_table
from attrib.data.own import has_split
from attrib.errors import AttribError, SetupError
from attrib.runs.collected import should_retry

WRITERS = {
    "a.csv": write_csv,
    "excel.csv": lambda path: write_csv(path, delimiter=";", encoding="utf-8-sig"),
    "tabs.csv": lambda path: write_csv(path, delimiter="\t"),
    "wide.csv": lambda path: write_csv(path, encoding="utf-16"),
    "a.TSV": lambda path: write_csv(path, delimiter="\t"),
    "a.jsonl": lambda path: write_lines(path, records()),
    "a.json": lambda path: write_json(path, records()),
    "a.parquet": lambda path: write_parquet(path, records()),
    "saved": lambda path: write_saved(path, records()),
    "shards": lambda path: write_shards(path, records()),
}


@pytest.fixture(autouse=True)
def there(tmp_path):
    pictures(tmp_path)


def content(data):
    return [(s.request.image.getpixel((0, 0)), s.request.prompt, s.request.target) for s in data]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_samples(tmp_path, name):
    data = load(WRITERS[name](tmp_path / name), image_root=tmp_path)
    pixels = {"0.png": (0, 2, 3), "1.png": (1, 2, 3)}
    assert content(data) == [(pixels[file], question, answer) for file, question, answer in ROWS]
    stem = name.partition(".")[0]
    assert [s.id for s in data] == [f"{stem}/{i}" for i in range(3)]
    assert not data.quarantined and data.provenance["columns"] == {
        "image": "file", "prompt": "question", "target": "answer",
    }  # fmt: skip
    assert [s.id for s in load(tmp_path / name, image_root=tmp_path, limit=2)] == [
        f"{stem}/0", f"{stem}/1",
    ]  # fmt: skip


def test_pictures_lie_beside_the_file_unless_a_root_is_given(tmp_path):
    path = write_csv(tmp_path / "a.csv")
    assert len(load(path)) == 3
    (tmp_path / "other").mkdir()
    assert len(load(path, image_root=tmp_path / "other").quarantined) == 3
    with pytest.raises(AttribError, match=r"image root .*nowhere: no such folder"):
        load(path, image_root=tmp_path / "nowhere")


BROKEN = {
    "missing picture": (("2.png", "What?", "a"), "file", "'2.png': no such file under"),
    "no picture": (("", "What?", "a"), "file", "is empty"),
    "climbing": (("../0.png", "What?", "a"), "file", "leads out of the image root"),
    "absolute": (("/etc/passwd", "What?", "a"), "file", "an absolute path"),
    "URL": (("http://x.org/0.png", "What?", "a"), "file", "a URL"),
    "second of two": (("0.png; 2.png", "What?", "a"), "file[1]", "'2.png': no such file"),
    "no words": (("0.png", "  ", "a"), "question", "is empty"),
    "no answer": (("0.png", "What?", ""), "answer", "is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_set_aside_with_file_row_and_column(tmp_path, name):
    row, field, reason = BROKEN[name]
    path = write_csv(tmp_path / "a.csv", [ROWS[0], row, ROWS[2]])
    data = load(path)
    assert [s.id for s in data] == ["a/0", "a/2"]
    (bad,) = data.quarantined
    assert (bad.file, bad.row, bad.field) == (str(path), 1, field) and reason in bad.reason
    report = check_table(path)
    assert not report.sound and [str(q) for q in report.quarantined] == [str(bad)]


WRONG = {
    "number": (
        {"file": "0.png", "question": 4, "answer": "a"},
        "question",
        "is a number, not text",
    ),
    "boolean": ({"file": "0.png", "question": "Q?", "answer": True}, "answer", "is a boolean"),
    "list": (
        {"file": ["0.png", 3], "question": "Q?", "answer": "a"},
        "file[1]",
        "is a number, not",
    ),
    "lacking": ({"file": "0.png", "answer": "a"}, "question", "is missing"),
    "null": ({"file": None, "question": "Q?", "answer": "a"}, "file", "is empty"),
    "no object": (["0.png", "Q?"], "row", "is a list, not an object"),
    "surrogate": ({"file": "0.png", "question": "\ud800", "answer": "a"}, "question", "half a"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_set_aside(tmp_path, name):
    row, field, reason = WRONG[name]
    data = load(write_json(tmp_path / "a.json", [*records(), row]))
    (bad,) = data.quarantined
    assert (len(data), bad.row, bad.field) == (3, 3, field) and reason in bad.reason


def test_ragged_rows_are_set_aside_with_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('file,question,answer\n0.png,"a\nb",c\n\n0.png,What, now?,c\n0.png,What\n,,\n')
    data = load(path)
    assert [s.request.prompt for s in data] == ["a\nb"]
    reasons = [(q.row, q.field, q.reason) for q in data.quarantined]
    quotes = "; a cell with ',' in it needs quotes"
    assert reasons == [(1, "row", f"line 5 has 4 cells, the header 3{quotes}"),
                       (2, "row", f"line 6 has 2 cells, the header 3{quotes}")]  # fmt: skip


def test_a_line_that_is_no_json_is_set_aside(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", records())
    path.write_text(path.read_text() + '{"file": "0.png", "quest\n')
    (bad,) = load(path).quarantined
    assert bad.row == 3 and bad.reason.startswith("line 4 is no JSON")


REFUSED = {
    "empty.csv": (b" \n", "the file is empty"),
    "empty.json": (b"", "the file is empty"),
    "separators.csv": (b",,,\n", "the file has no header"),
    "header.csv": (b"file,question\n", "holds no rows"),
    "latin.csv": ("file,question\n0.png,Gr\xf6\xdfe?".encode("latin-1"),
                  "line 2: the byte 0xf6 is not UTF-8; save the file as UTF-8"),
    "quote.csv": (b'file,question\n0.png,"What\n0.png,Q\n', "line 3: .* is a quote not closed"),
    "twice.csv": (b"file,question,file\n0.png,Q,1.png\n", "two columns are named 'file'"),
    "object.json": (b'{"rows": []}', "holds an object with the keys .'rows'.; expected a list"),
    "cut.json": (b'[{"file": "0.png"', "truncated"),
    "cut.jsonl": (b"[1,\n2]", "no line is JSON"),
    "cut.parquet": (b"PAR1....", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    raw, reason = REFUSED[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(AttribError, match=reason) as caught:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"none\.csv: no such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(AttribError, match="scenes-vqa has its own columns"):
        load("scenes-vqa", "test", columns="image=file", limit=1)
    folder = write_saved(tmp_path / "saved", records())
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(SetupError, match=r"data-00001-of-00002\.arrow: cannot be read"):
        load(folder)


def test_several_pictures_are_a_list_or_stand_between_semicolons(tmp_path):
    text = write_csv(tmp_path / "a.csv", [("0.png;1.png", "Q?", "a")])
    listed = write_json(tmp_path / "a.json", records([(["0.png", "1.png"], "Q?", "a")]))
    for path in (text, listed):
        images = load(path)[0].request.images
        assert [image.getpixel((0, 0)) for image in images] == [(0, 2, 3), (1, 2, 3)]


def test_repeated_ids_get_their_row_and_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "attrib")
    rows = [(name, *row) for name, row in zip(("x", "y", "x"), ROWS, strict=True)]
    path = write_csv(tmp_path / "a.csv", rows, ("id", *NAMES))
    assert [s.id for s in load(path)] == ["x", "y", "x#2"]
    assert "1 rows repeat an id and have their number appended, such as x#2" in caplog.text
    assert check_table(path).counts["repeated ids"] == 1


def test_a_split_is_a_column_or_a_folder_of_a_saved_dataset(tmp_path):
    rows = [(*row, part) for row, part in zip(ROWS, ("train", "test", "train"), strict=True)]
    path = write_csv(tmp_path / "a.csv", rows, (*NAMES, "Split"))
    assert [s.meta["row"] for s in load(path, "train")] == [0, 2] and len(load(path)) == 3
    with pytest.raises(AttribError, match="no row has Split = 'eval'; there are train, test"):
        load(path, "eval")
    with pytest.raises(AttribError, match="without a column named split"):
        load(write_csv(tmp_path / "b.csv"), "train")
    numbered = [{**row, "split": number} for row, number in zip(records(), (1, 2, 1), strict=True)]
    path = write_json(tmp_path / "numbered.json", numbered)
    assert [s.meta["row"] for s in load(path, "1")] == [0, 2]
    assert has_split(path, "2", None) and not has_split(path, "3", None)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    write_saved(tmp_path / "both" / "train", records(ROWS[:1]), files=1)
    write_saved(tmp_path / "both" / "test", records(ROWS[1:]), files=1)
    assert len(load(tmp_path / "both", "test", image_root=tmp_path)) == 2
    assert has_split(tmp_path / "both", "test", None)
    assert not has_split(tmp_path / "both", "eval", None)
    with pytest.raises(AttribError, match="needs a split: one of train, test"):
        load(tmp_path / "both")


def test_files_of_a_parquet_dataset_are_one_table_and_a_missing_one_is_named(tmp_path):
    folder = write_shards(tmp_path / "hub", records(ROWS[:2]))
    write_shards(folder, records(ROWS[2:]), "test", files=1)
    (folder / "README.md").touch()
    assert [s.request.target for s in load(folder, "train", image_root=tmp_path)] == ["a cat", "NA"]
    assert has_split(folder, "test", None) and not has_split(folder, "eval", None)
    with pytest.raises(AttribError, match="needs a split: one of test, train"):
        load(folder)
    (folder / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(SetupError, match=r"train-00000-of-00002\.parquet is missing; 1 of 2 files"):
        load(folder, "train")


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_numbers_of_classes_are_read_as_their_names(tmp_path, write):
    label = {"names": ["cat", "0", "dog"], "_type": "ClassLabel"}
    about = {"info": {"features": {"answer": label, "file": {"_type": "Value"}}}}
    rows = [{"file": "0.png", "question": "Q?", "answer": number} for number in (2, 1, -1, None, 7)]
    plain = pa.Table.from_pylist(rows).schema
    data = load(write(tmp_path / "t.parquet", rows, plain.with_metadata(
        {"huggingface": json.dumps(about)})), image_root=tmp_path)  # fmt: skip
    assert [s.request.target for s in data] == ["dog", "0"]
    assert [(q.row, q.field) for q in data.quarantined] == [(i, "answer") for i in (2, 3, 4)]
    data = load(write(tmp_path / "numbers.parquet", rows[:2], plain), image_root=tmp_path)
    assert not data.samples and len(data.quarantined) == 2  # numbers without names are no answers


def test_a_sample_has_the_inputs_whose_columns_are_there_and_filled(tmp_path):
    names = ("image", "prompt", "target", "rephrase", "image_rephrase", "loc", "loc_ans", "m_loc",
             "m_loc_q", "m_loc_a", "note")  # fmt: skip
    full = ("0.png", "Q?", "a", "R?", "1.png", "who", "she", "1.png", "Big?", "yes", "n")
    some = ("0.png", "Q?", "a", "", "", "", "", "", "", "", "")
    half = ("0.png", "Q?", "a", "", "", "who", "", "", "", "", "")
    data = load(write_csv(tmp_path / "a.csv", [full, some, half], names))
    first, second = data
    assert [len(one.requests) for one in data] == [5, 1] and len(second.meta) < len(first.meta)
    assert first.text_generality[0].prompt == "R?" and first.meta["other"] == {"note": "n"}
    assert first.visual_locality[0].image.getpixel((0, 0)) == (1, 2, 3)
    assert str(data.quarantined[0]).endswith("row 2: loc_ans: is empty, but there is loc")


def test_a_repaired_picture_is_tried_again_whatever_its_column_is_called(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("2.png", "Q?", "a")])
    sample = load(path, need=())[0]
    (bad,) = load(path).quarantined
    assert not should_retry(sample, bad)
    (tmp_path / "2.png").write_bytes(encoded())
    assert should_retry(sample, bad)


def test_the_report_counts_repeats_and_escapes_text(tmp_path):
    rows = [ROWS[0], ROWS[0], ("0.png", "What is it?", "<b>|"), ("0.png", "", "x")]
    report = check_table(write_csv(tmp_path / "a.csv", rows))
    counts = report.counts
    assert (counts["rows"], counts["rows that cannot be used"], counts["repeated rows"]) == (
        4,
        1,
        1,
    )
    assert counts["repeated questions about an image"] == 2
    assert counts["such questions with several targets"] == 1
    text = report.to_markdown()
    assert "image = file, prompt = question, target = answer" in text
    assert "- row 3: question: is empty" in text and "a cat 2" in text
