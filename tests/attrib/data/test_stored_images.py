"""Pictures inside a table: opened when they are accessed, with the checks that files have."""

import pyarrow as pa
import pytest
from own_tables import encoded, pictures, write_parquet, write_saved
from PIL import Image

from attrib.data import arrow_tables, load
from attrib.data.check_table import check_table
from attrib.errors import RowError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("kind", ["bytes", "struct", "list", "saved"])
def test_pictures_inside_a_table_are_opened_upright_and_checked(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    good = encoded(kind="JPEG", exif=exif)
    big = encoded(size=(60, 60))
    cells = [
        good,
        encoded((9, 9, 9)),
        big,
        b"",
        b"GIF no",
        encoded((7, 7, 7), "BMP", (20, 20))[:-200],
        None,
    ]
    wrap = {"bytes": lambda b: b, "list": lambda b: None if b is None else [b]}.get(
        kind, lambda b: {"bytes": b, "path": None}
    )
    schema = pa.schema([
        ("image", {"bytes": pa.binary(), "list": pa.list_(pa.binary())}.get(kind, STRUCT)),
        ("prompt", pa.string()),
    ])  # fmt: skip
    rows = [{"image": wrap(cell), "prompt": f"Q{i}"} for i, cell in enumerate(cells)]
    write = write_saved if kind == "saved" else write_parquet
    path = write(tmp_path / ("t" if kind == "saved" else "t.parquet"), rows, schema)
    data = load(path, max_pixels=1000)
    assert [s.request.prompt for s in data] == ["Q0", "Q1", "Q5"]
    assert [s.request.image.size for s in data[:2]] == [(3, 4), (4, 3)]
    assert data[1].request.image.getpixel((0, 0)) == (9, 9, 9)
    place = "image[0]" if kind == "list" else "image"
    reasons = {q.row: (q.field, q.reason) for q in data.quarantined}
    assert reasons[6] == ("image", "is empty") and {*reasons} == {2, 3, 4, 6}
    assert reasons[2][0] == place and "3600 pixels, more than the limit of 1000" in reasons[2][1]
    assert "empty file" in reasons[3][1] and "not an image" in reasons[4][1]
    with pytest.raises(RowError, match=r"row 5: image.*truncated or damaged"):  # while decoding
        _ = data[2].request.image
    broken = check_table(path, max_pixels=1000).quarantined
    assert [q.row for q in broken] == [2, 3, 4, 5, 6]


def test_a_struct_without_bytes_names_a_file_inside_the_root(tmp_path):
    pictures(tmp_path)
    rows = [{"image": {"bytes": None, "path": p}, "prompt": "Q"} for p in ("1.png", "/x/1.png")]
    schema = pa.schema([("image", STRUCT), ("prompt", pa.string())])
    data = load(write_parquet(tmp_path / "a.parquet", rows, schema))
    assert data[0].request.image.getpixel((0, 0)) == (1, 2, 3)
    assert "an absolute path" in data.quarantined[0].reason


def test_bytes_are_read_when_an_image_is_opened_and_from_its_part_alone(tmp_path, monkeypatch):
    rows = [{"image": encoded((i, i, i)), "prompt": "Q"} for i in range(6)]
    data = load(write_parquet(tmp_path / "a.parquet", rows), need=())
    read = []
    original = arrow_tables._column.__wrapped__

    def column(part, name):
        read.append(part.group)
        return original(part, name)

    monkeypatch.setattr(arrow_tables, "_column", column)
    assert not read
    assert data[3].request.image.getpixel((0, 0)) == (3, 3, 3) and read == [1]


def test_a_table_that_is_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "a.parquet"
    for shade in (1, 2):
        write_parquet(path, [{"image": encoded((shade,) * 3), "prompt": "Q"}])
        assert load(path)[0].request.image.getpixel((0, 0)) == (shade,) * 3
