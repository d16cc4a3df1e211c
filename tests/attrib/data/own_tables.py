"""Small tables of every kind with the same rows, and their pictures."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("file", "question", "answer")
ROWS = [("0.png", "What is it?", "a cat"), ("1.png", 'The "big; one", is?', "NA"),
        ("0.png", "Größe?\nAnd now?", "null")]  # fmt: skip


def encoded(color=(1, 2, 3), kind="PNG", size=(4, 3), **options):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


def pictures(folder, num=2):
    for i in range(num):
        (folder / f"{i}.png").write_bytes(encoded((i, 2, 3)))


def records(rows=ROWS, names=NAMES):
    return [dict(zip(names, row, strict=True)) for row in rows]


def write_csv(path, rows=ROWS, names=NAMES, delimiter=",", encoding="utf-8"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([names, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_parquet(path, rows, schema=None, rows_per_group=2):
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=rows_per_group)
    return path


def write_saved(folder, rows, schema=None, files=2):
    """A folder as `save_to_disk` of `datasets` writes it: Arrow streams, named in state.json."""
    folder.mkdir()
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    table = pa.Table.from_pylist(rows, schema)
    size = -(-len(rows) // files)
    for i, name in enumerate(names):
        part = table.slice(i * size, size)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as w:
            w.write_table(part)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": n} for n in names]})
    )
    return folder


def write_shards(folder, rows, split="train", files=2):
    """A folder as the Hugging Face hub has Parquet datasets."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // files)
    for i in range(files):
        name = f"{split}-{i:05d}-of-{files:05d}.parquet"
        write_parquet(folder / "data" / name, rows[i * size : (i + 1) * size])
    return folder
