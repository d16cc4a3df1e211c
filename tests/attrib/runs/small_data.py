"""A small folder of edit data, for whole commands."""

import json

from conftest import picture

ROWS = 40  # three units, the last of them not full


def row(i, **changes):
    """Row `i` of a sound file, with the given fields changed."""
    return {
        "src": f"What is number {i}?", "pred": "a dog", "rephrase": f"Which is number {i}?",
        "alt": f"cat {i}", "image": f"{i % 4}.png", "image_rephrase": "0.png",
        "loc": "nq question: who wrote Emma", "loc_ans": "Jane Austen", "m_loc": "1.png",
        "m_loc_q": "Is it big?", "m_loc_a": "yes",
    } | changes  # fmt: skip


def write_data(folder, rows=ROWS, **changed):
    """Rows in the layout of E-VQA; `row_3={...}` changes fields of row 3."""
    (folder / "vqa").mkdir(parents=True)
    (folder / "images").mkdir()
    for i in range(4):
        picture(60 + i, 40, seed=i).save(folder / "images" / f"{i}.png")
    all_rows = [row(i, **changed.get(f"row_{i}", {})) for i in range(rows)]
    (folder / "vqa" / "vqa_train.json").write_text(json.dumps(all_rows))
    return folder
